"""TANGO's and ConsistencyTTA's files with random weights, of any size, as their authors published them.

The names in the files are those of the published ones; U-Net and T5 are the libraries' own classes, as there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import GaussianFourierProjection, TimestepEmbedding
from original_files import _folded
from original_ldm import OriginalVae, OriginalVocoder, randomise
from tiny_tokens import WIDTH, make_t5_tokenizer, t5_config
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from transformers import T5EncoderModel

#: Heads that do not divide the widths, as the light U-Net's: attention is 30 and 60 wide.
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
    "attention_head_dim": [5, 10], "block_out_channels": [32, 64], "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "in_channels": 8, "out_channels": 8, "layers_per_block": 1, "sample_size": [32, 2], "norm_num_groups": 32,
    "use_linear_projection": True, "upcast_attention": True,
}
SCALE = 0.87


def make_unet(seed: int, config: dict[str, Any] | None = None) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(config or UNET).eval()


class OriginalGuidedUNet(nn.Module):
    """ConsistencyTTA's student of its modules: waves of the scale, through two layers, are added to the time's."""

    def __init__(self, seed: int, width: int = 32) -> None:
        super().__init__()
        self.unet = make_unet(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.guidance_proj = GaussianFourierProjection(2 * width, scale=1.0, set_W_to_weight=False, log=False,
                                                           flip_sin_to_cos=True)
            self.guidance_embedding = TimestepEmbedding(4 * width, 4 * width)

    @property
    def state(self) -> dict[str, Tensor]:
        """Its weights under the published names."""
        return {name.removeprefix("unet."): value for name, value in self.state_dict().items()}

    def forward(self, z: Tensor, t: Tensor, scale_B: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        told = self.guidance_embedding(self.guidance_proj(scale_B))
        hook = self.unet.time_embedding.register_forward_hook(lambda module, given, made: made + told)
        try:
            return self.unet(z, t, tokens, encoder_attention_mask=mask).sample
        finally:
            hook.remove()


def stft_state() -> dict[str, Tensor]:
    """TacotronSTFT's buffers, of which the mel filters say something."""
    filters = melscale_fbanks(513, 0.0, 8000.0, 64, 16000, "slaney", "slaney")
    return {"mel_basis": filters.T.contiguous(), "stft_fn.forward_basis": torch.zeros(4, 1, 8),
            "stft_fn.inverse_basis": torch.zeros(4, 1, 8)}


@dataclass
class TangoParts:
    """The networks that the files are of, and the folder of the tokenizer and the U-Net's configuration."""

    unet: nn.Module
    t5: nn.Module
    vae: nn.Module
    vocoder: nn.Module
    folder: Path

    @property
    def arguments(self) -> list[str]:
        return ["--tokenizer", str(self.folder / "tokenizer"), "--unet-config", str(self.folder / "unet.json"),
                "--mel-frames", "64"]

    @property
    def main(self) -> dict[str, Tensor]:
        return under("unet", self.unet) | under("text_encoder", self.t5)

    @property
    def autoencoder(self) -> dict[str, Tensor]:
        return self.vae.state_dict() | under("vocoder", self.vocoder)


def under(prefix: str, module: nn.Module | dict[str, Tensor]) -> dict[str, Tensor]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {f"{prefix}.{name}": value for name, value in state.items()}


def make_parts(folder: Path) -> TangoParts:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_t5_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "unet.json").write_text(json.dumps(UNET))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        t5 = T5EncoderModel(t5_config(len(tokenizer))).eval()
    # TANGO's vocoder has its weight norm folded
    return TangoParts(make_unet(0), t5, randomise(OriginalVae(32, (1, 2, 2), 1, 8), 1),
                      _folded(randomise(OriginalVocoder(64, 64), 2)), folder)


def write_hub(parts: TangoParts, folder: Path) -> Path:
    folder.mkdir()
    torch.save(parts.main, folder / "pytorch_model_main.bin")
    torch.save(parts.autoencoder, folder / "pytorch_model_vae.bin")
    torch.save(stft_state(), folder / "pytorch_model_stft.bin")
    (folder / "main_config.json").write_text(json.dumps(
        {"text_encoder_name": "google/flan-t5-large", "scheduler_name": "stabilityai/stable-diffusion-2-1",
         "unet_model_name": None, "unet_model_config_path": "configs/diffusion_model_config.json", "snr_gamma": 5.0}))
    (folder / "vae_config.json").write_text(json.dumps({"embed_dim": 8, "scale_factor": SCALE}))
    (folder / "stft_config.json").write_text(json.dumps(
        {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "n_mel_channels": 64, "sampling_rate": 16000,
         "mel_fmin": 0, "mel_fmax": 8000}))
    return folder


def write_run(parts: TangoParts, folder: Path, model: dict[str, Tensor], summary: dict[str, Any] | None = None) -> Path:
    """What `accelerate.save_state` writes: VAE, front end, model."""
    folder.mkdir(parents=True)
    torch.save(parts.autoencoder, folder / "pytorch_model.bin")
    torch.save(stft_state(), folder / "pytorch_model_1.bin")
    torch.save(model, folder / "pytorch_model_2.bin")
    if summary is not None:
        (folder.parent / "summary.jsonl").write_text(json.dumps(summary) + '\n\n{"epoch": 1}\n')
    return folder


def consistency_model(parts: TangoParts, guided: bool = False) -> dict[str, Tensor]:
    """A stage-2 model of ConsistencyTTA: four U-Nets of different weights, T5, the autoencoder, CLAP in the loss."""
    model = under("teacher_unet", make_unet(10)) | under("text_encoder", parts.t5) | under("vae", parts.autoencoder)
    for number, name in enumerate(("student_unet", "student_target_unet", "student_ema_unet"), 11):
        model |= under(name, OriginalGuidedUNet(number).state if guided else make_unet(number))
    return model | {"loss.clap.logit_scale_a": torch.ones(()), "loss.mse.weight": torch.ones(2)}


def with_old_names(model: dict[str, Tensor], slow: bool = True) -> dict[str, Tensor]:
    """The same under the names of older code, which held no autoencoder; without `slow` it had one average."""
    names = {"teacher_unet": "diffusion_unet", "student_unet": "consistency_unet",
             "student_target_unet": "consistency_ema_unet", "student_ema_unet": "consistency_slow_ema_unet"}
    return {".".join([names.get(first, first), rest]): value for name, value in model.items()
            for first, rest in [name.split(".", 1)] if first != "vae" and (slow or first != "student_ema_unet")}


def write_easy(parts: TangoParts, folder: Path, unet: dict[str, Tensor]) -> Path:
    folder.mkdir()
    torch.save(unet, folder / "unet_state_dict.pt")
    torch.save({"state_dict": parts.autoencoder, "scale_factor": SCALE}, folder / "vae_state_dict.pt")
    return folder
