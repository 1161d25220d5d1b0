"""The original files to a bundle: which part comes from which file, and a record of what was kept and what was not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from musiccm.audio.mel import MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.conditioners.clap_names import naming_clap
from musiccm.models.convert.clap import clap_from_original, make_extractor, read_tokenizer
from musiccm.models.convert.ldm import LdmCheckpoint
from musiccm.models.convert.reading import read_original, tensors_of
from musiccm.models.convert.unet import unet_from_original
from musiccm.models.convert.vae import vae_from_original
from musiccm.models.convert.vocoder import read_vocoder_config, vocoder_from_original

#: Which copy of a part is taken where the LDM checkpoint and a file of its own both hold it and differ.
PREFERENCES = ("checkpoint", "files")


@dataclass
class Sources:
    """The original files and what they do not say.

    Args:
        ldm: `musicldm-ckpt.ckpt` or AudioLDM's file: U-Net, and often all the rest.
        weights: `ema` or `raw`: which of the U-Net's weights.
        vae: `vae-ckpt.ckpt`.
        clap: `clap-ckpt.pt`.
        vocoder: `hifigan-ckpt.ckpt`.
        vocoder_config: HiFi-GAN's JSON.
        tokenizer: Folder or hub id of RoBERTa's tokenizer.
        prefer: `checkpoint` or `files`, where both hold a part and differ; None refuses.
        head_channels: Channels of an attention head of the U-Net.
        scale_factor: For an LDM checkpoint without one.
        mel_frames: Frames of the clips that the U-Net was trained on.
    """

    ldm: str
    weights: str
    vae: str | None = None
    clap: str | None = None
    vocoder: str | None = None
    vocoder_config: str | None = None
    tokenizer: str = "roberta-base"
    prefer: str | None = None
    head_channels: int | None = None
    scale_factor: float | None = None
    mel_frames: int = 1024


@dataclass
class Assembled:
    """The parts of a bundle by folder, its mel, other settings, and the record of the conversion."""

    parts: dict[str, Any] = field(default_factory=dict)
    mel: MelConfig = field(default_factory=MelConfig)
    settings: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=lambda: {"schema": 1, "parts": {}, "files": {}, "assumed": []})

    def add(
        self, name: str, part: nn.Module, source: str | Path, dropped: list[str], ignored: list[str] | None = None,
        **notes: Any,
    ) -> None:
        """Take a part in, with the file it came from (its name alone) and what of that had no use.

        Args:
            name: Its folder.
            part: The part.
            source: The file or folder.
            dropped: Weights that no part was made from.
            ignored: Keys of what is no weight in the file; None where the source is no such file.
            **notes: Anything else that the record should say.
        """
        self.parts[name] = part
        if ignored is not None:
            before = self.record["files"].get(Path(source).name, {"ignored": []})["ignored"]
            self.record["files"][Path(source).name] = {"ignored": sorted({*before, *ignored})}
        self.record["parts"][name] = {
            "file": Path(source).name, **notes, "tensors": len(part.state_dict()),
            "parameters": sum(p.numel() for p in part.parameters()), "dropped": sorted(dropped),
        }


def assemble(sources: Sources) -> Assembled:
    """Convert every part.

    Args:
        sources: The files.

    Returns:
        The parts.

    Raises:
        MusiccmError: A part is in no file, differs between two, or is not of the expected architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    ldm, made = LdmCheckpoint(sources.ldm), Assembled()
    assumed: list[str] = made.record["assumed"]
    factor = ldm.scale_factor(sources.scale_factor)
    numbers = read_vocoder_config(sources.vocoder_config) if sources.vocoder_config else None

    def make_vae(tensors: Mapping[str, Tensor], what: str) -> tuple[nn.Module, list[str]]:
        found = vae_from_original(tensors, factor, what)
        return found.build(lambda config: AutoencoderKL(**config), what), found.dropped

    def make_vocoder(tensors: Mapping[str, Tensor], what: str) -> tuple[nn.Module, list[str]]:
        found = vocoder_from_original(tensors, numbers, what)
        assumed.extend(line for line in found.assumed if line not in assumed)
        return found.build(lambda config: SpeechT5HifiGan(SpeechT5HifiGanConfig(**config)), what), found.dropped

    def make_clap(tensors: Mapping[str, Tensor], what: str) -> tuple[nn.Module, list[str]]:
        with naming_clap(what):
            return clap_from_original(tensors)

    used: dict[str, bool] = {}
    for name, option, own, make, nests in (
        ("vae", "vae", ldm.vae, make_vae, ("state_dict",)),
        ("vocoder", "vocoder", ldm.vocoder, make_vocoder, ("generator", "state_dict")),
        ("text_encoder", "clap", ldm.clap, make_clap, ("state_dict",)),
    ):
        path = getattr(sources, option)
        part, origin, dropped, ignored = choose(option, path, ldm, own, make, nests, sources.prefer)
        used[option] = origin == ldm.path
        made.add(name, part, origin, dropped, ignored)
    frames, vae = sources.mel_frames, made.parts["vae"]
    factor_of_time = 2 ** (len(vae.config.block_out_channels) - 1)
    if frames < factor_of_time or frames % factor_of_time:
        raise MusiccmError(f"--mel-frames {frames}: expected a positive multiple of {factor_of_time}, by which this "
                           "VAE shrinks")
    unet = unet_from_original(ldm.unet(sources.weights), sources.head_channels, frames // factor_of_time, str(ldm.path))
    assumed.extend(unet.assumed)
    made.add("unet", unet.build(lambda config: UNet2DConditionModel(**config), str(ldm.path)), ldm.path,
             ldm.dropped(sources.weights, used), ldm.ignored, weights=sources.weights, scale_factor=factor,
             attention_heads=unet.config["attention_head_dim"])
    made.parts["scheduler"], schedule_assumed = ldm.scheduler()
    clap, vocoder = made.parts["text_encoder"], made.parts["vocoder"].config
    made.parts["feature_extractor"] = make_extractor(clap)
    made.parts["tokenizer"] = read_tokenizer(sources.tokenizer, clap.config.text_config.vocab_size)
    hop = int(torch.tensor(vocoder.upsample_rates).prod())
    made.mel = MelConfig(sample_rate_hz=vocoder.sampling_rate, hop_length=hop, n_mels=vocoder.model_in_dim)
    assumed.extend([*schedule_assumed, f"clips of {frames} mel frames",
                    f"mel: n_fft {made.mel.n_fft}, {made.mel.fmin_hz:g} to {made.mel.fmax_hz:g} Hz, as MusicLDM's"])
    _check_widths(made.parts)
    return made


class Origin(Protocol):
    """A file that several parts may come from."""

    path: Path
    ignored: list[str]


def choose(
    option: str, path: str | None, main: Origin, own: Mapping[str, Tensor],
    make: Callable[[Mapping[str, Tensor], str], tuple[nn.Module, list[str]]], nests: tuple[str, ...],
    prefer: str | None, weights_only: bool = False,
) -> tuple[nn.Module, Path, list[str], list[str]]:
    """The part from its own file or from the main one; where both have it they agree, or one is preferred.

    Args:
        option: What names its file on the command line.
        path: Its own file; None for none.
        main: The main file.
        own: Its weights there; none where the file has none.
        make: Makes the part of weights and the name of their file; gives it with the names that it has no use for.
        nests: Keys under which the weights may lie in its own file.
        prefer: One of `PREFERENCES`, or None.
        weights_only: See `read_original`.

    Returns:
        The part, the file that it came from, the names of that file which it has no use for, and the keys of what is
        no weight there.

    Raises:
        MusiccmError: Neither file has it, or both do and differ.
    """
    if path is None and not own:
        raise MusiccmError(f"{main.path}: holds no {option}; give its file by --{option}")
    theirs = make(own, str(main.path)) if own and not (path and prefer == "files") else None
    if path is None or (theirs is not None and prefer == "checkpoint"):
        assert theirs is not None
        return theirs[0], main.path, theirs[1], main.ignored
    tensors, ignored = tensors_of(read_original(path, weights_only), path, *nests)
    part, dropped = make(tensors, path)
    if theirs is not None and (different := _differences(part, theirs[0])):
        raise MusiccmError(
            f"{path} and {main.path} hold different weights of the {option} ({len(different)} tensors, first "
            f"{different[0]}). The original code loads the checkpoint last, so its copy is the one that counts: "
            "choose by --prefer checkpoint, or --prefer files"
        )
    return part, Path(path), dropped, ignored


def _differences(first: nn.Module, second: nn.Module) -> list[str]:
    ours, theirs = first.state_dict(), second.state_dict()
    if ours.keys() != theirs.keys():
        return sorted(ours.keys() ^ theirs.keys())
    return [name for name in ours if ours[name].shape != theirs[name].shape
            or not torch.allclose(ours[name].float(), theirs[name].float(), rtol=1e-4, atol=1e-6)]


def _check_widths(parts: Mapping[str, Any]) -> None:
    """Parts of different models do not make one.

    Raises:
        MusiccmError: U-Net and VAE, U-Net and CLAP, or VAE and vocoder do not fit together.
    """
    unet, vae, clap = parts["unet"].config, parts["vae"].config, parts["text_encoder"].config
    pairs = [("the U-Net's in_channels", unet.in_channels, "the VAE's latent channels", vae.latent_channels),
             ("the U-Net's condition", unet.projection_class_embeddings_input_dim, "CLAP's embedding",
              clap.projection_dim)]
    for first, a, second, b in pairs:
        if a != b:
            raise MusiccmError(f"{first} has width {a}, {second} {b}: the files are not of one model")
