"""MusicLDM's four files with random weights, of any size, as its authors published them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from laion_clap import random_clap, write_original
from original_ldm import OriginalUNet, OriginalVae, OriginalVocoder, ldm_checkpoint, randomise
from tiny_bundle import CAPTIONS
from torch import nn

from musiccm.models.bundle.tokenizer import train_tokenizer


@dataclass
class OriginalFiles:
    """Where the files lie, and the networks that wrote them."""

    folder: Path
    unet: OriginalUNet
    vae: OriginalVae
    vocoder: OriginalVocoder
    clap: nn.Module

    @property
    def arguments(self) -> list[str]:
        """`musiccm convert` with all four."""
        f = self.folder
        return ["--ldm", str(f / "musicldm-ckpt.ckpt"), "--vae", str(f / "vae-ckpt.ckpt"),
                "--clap", str(f / "clap-ckpt.pt"), "--vocoder", str(f / "hifigan-ckpt.ckpt"),
                "--tokenizer", str(f / "tokenizer")]


def write_files(
    folder: Path, unet: nn.Module, vae: nn.Module, vocoder: nn.Module, clap: nn.Module, vocabulary: int = 300,
    whole: bool = False, scale_factor: float = 0.9,
) -> OriginalFiles:
    """Write them.

    `whole` puts the other parts into the LDM checkpoint as well, as training does; the vocoder with its weight norm
    folded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = write_original(clap, "module.")
    autoencoder = {**vae.state_dict(), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": autoencoder, "epoch": 1}, folder / "vae-ckpt.ckpt")
    torch.save({"generator": vocoder.state_dict()}, folder / "hifigan-ckpt.ckpt")
    torch.save({"epoch": 15, "name": "clap", "state_dict": saved}, folder / "clap-ckpt.pt")
    plain = {name.removeprefix("module."): value for name, value in saved.items()}
    content = ldm_checkpoint(unet, vae if whole else None, _folded(vocoder) if whole else None,
                             plain if whole else None, scale_factor)
    torch.save(content | {"hyper_parameters": Namespace(lr=3e-5)}, folder / "musicldm-ckpt.ckpt")
    train_tokenizer(CAPTIONS * 2, vocab_size=vocabulary, max_length=77).save_pretrained(folder / "tokenizer")
    return OriginalFiles(folder, unet, vae, vocoder, clap)


def _folded(vocoder: nn.Module) -> nn.Module:
    copy = type(vocoder)(vocoder.conv_pre.in_channels, vocoder.conv_pre.out_channels)
    copy.load_state_dict(vocoder.state_dict())
    for module in copy.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    return copy


def small_files(folder: Path, paper: bool = False, whole: bool = False) -> OriginalFiles:
    """Few channels; the release's geometry (64 bins, a VAE that shrinks by 4, 8 channels) or the paper's (128, 8, 16).
    """
    z, bins, levels = (16, 128, (1, 1, 2, 2)) if paper else (8, 64, (1, 2, 2))
    return write_files(
        folder,
        randomise(OriginalUNet(32, (1, 2), 1, channels=z, head=16, cond=24), 0),
        randomise(OriginalVae(32, levels, 1, z), 1),
        randomise(OriginalVocoder(bins, 64), 2),
        random_clap(),
        whole=whole,
    )
