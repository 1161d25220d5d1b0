"""The mel autoencoder: diffusers' `AutoencoderKL` over pixel-unshuffled log-mels."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.device import sent
from musiccm.losses.reconstruction import gaussian_kl, mel_reconstruction
from musiccm.models.bundle import save_settings
from musiccm.models.bundle.files import save_part
from musiccm.systems.parallel import normal_like
from musiccm.systems.stages.base import Stage, mean_of


@torch.no_grad()
def start_posterior_at(vae: AutoencoderKL, std: float) -> None:
    """Give every posterior of an untrained VAE the same standard deviation."""
    head = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    logvar = slice(vae.config.latent_channels, None)
    head.weight[logvar].zero_()
    head.bias[logvar].fill_(2.0 * math.log(std))


@torch.no_grad()
def start_at_scale(vae: AutoencoderKL, mean: float, std: float) -> None:
    """Let an untrained VAE see and emit mels of this mean and standard deviation as if they were standardised."""
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    first.weight.div_(std)
    first.bias.sub_(mean * first.weight.sum(dim=(1, 2, 3)))
    last.weight.mul_(std)
    last.bias.mul_(std).add_(mean)


class VaeStage(Stage):
    """Trains the VAE on random crops in time, then measures the moments of its latents.

    Convolutions see only their receptive field, so short crops train the same network that later encodes whole clips,
    at a fraction of the cost.

    Args:
        vae: `AutoencoderKL` configuration; `in_channels` is the square of the pixel-unshuffle factor.
        mel: mel front end.
        crop_frames: mel frames of a training crop, a multiple of the total downsampling in time.
        kl_weight: weight of the KL per latent element.
        l1_weight: weight of the mel's absolute error.
        l2_weight: weight of its squared error.
        gradient_weight: weight of the absolute error of its first differences.
        latent_patch: side of the blocks of latents that the U-Net will see as one position; kept in the bundle.
        mel_mean: what the initial weights take for the mean of a mel.
        mel_std: what they take for its standard deviation.
        initial_posterior_std: standard deviation of every posterior before training. diffusers' own start is about 1,
            noise as large as the means, through which little is learnt for the first thousand steps.
        moments_batches: training batches over which `latents_mean` and `latents_std` are taken at the end.
        **stage: arguments of `Stage`.
    """

    stage = "vae"
    part_name = "vae"
    draws_noise = True
    part: AutoencoderKL
    kinds = {"count": "crop_frames latent_patch moments_batches", "positive": "mel_std initial_posterior_std",
             "not_negative": "kl_weight l1_weight l2_weight gradient_weight", "finite": "mel_mean"}

    def __init__(
        self,
        vae: dict[str, Any],
        mel: MelConfig | None = None,
        crop_frames: int = 128,
        kl_weight: float = 1e-3,
        l1_weight: float = 1.0,
        l2_weight: float = 0.5,
        gradient_weight: float = 0.5,
        latent_patch: int = 1,
        mel_mean: float = -5.0,
        mel_std: float = 3.0,
        initial_posterior_std: float = 0.05,
        moments_batches: int = 32,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.mel_config = mel or MelConfig()
        self.mel = LogMel(self.mel_config)
        self.part = AutoencoderKL(**vae)
        start_at_scale(self.part, mel_mean, mel_std)
        start_posterior_at(self.part, initial_posterior_std)
        self.patch = math.isqrt(self.part.config.in_channels)
        self.latent_patch = latent_patch
        self.crop_frames, self.kl_weight, self.moments_batches = crop_frames, kl_weight, moments_batches
        self.weights = {"l1_weight": l1_weight, "l2_weight": l2_weight, "gradient_weight": gradient_weight}
        self.finish_init()

    def to_image(self, mel_BMN: Tensor) -> Tensor:
        """A mel as the VAE takes it: time is the height, pixel-unshuffled."""
        return F.pixel_unshuffle(mel_BMN.unsqueeze(1), self.patch)

    def to_mel(self, image_BCTF: Tensor) -> Tensor:
        """The inverse of `to_image`."""
        return F.pixel_shuffle(image_BCTF, self.patch).squeeze(1)

    def crop(self, mel_BMN: Tensor, generator: torch.Generator) -> Tensor:
        """One random window of `crop_frames` from each mel."""
        spare = mel_BMN.shape[1] - self.crop_frames
        if spare <= 0:
            return mel_BMN
        starts_B = torch.randint(spare + 1, (len(mel_BMN), 1), generator=generator)
        frames_BL = sent(starts_B + torch.arange(self.crop_frames), mel_BMN.device)
        return mel_BMN.gather(1, frames_BL.unsqueeze(-1).expand(-1, -1, mel_BMN.shape[2]))

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction of one sampled latent, plus the KL."""
        mel_BMN = self.crop(self.mel(batch.waveform_BS), generator)
        posterior = self.part.encode(self.to_image(mel_BMN)).latent_dist
        noise = normal_like(posterior.mean, generator).to(posterior.mean.dtype)
        decoded = self.part.decode(posterior.mean + posterior.std * noise).sample
        total, parts = mel_reconstruction(self.to_mel(decoded), mel_BMN, **self.weights)
        parts["kl"] = gaussian_kl(posterior.mean, posterior.logvar)
        parts["latent_std"] = posterior.mean.detach().std()
        return total + self.kl_weight * parts["kl"], parts

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Errors of whole clips through the mean of the posterior."""
        mel_BMN = self.mel(batch.waveform_BS)
        posterior = self.best.encode(self.to_image(mel_BMN)).latent_dist
        decoded_BMN = self.to_mel(self.best.decode(posterior.mean).sample)
        error_BMN = decoded_BMN - mel_BMN
        return {
            "mel_l1": error_BMN.abs().mean(dim=(1, 2)),
            "mel_l2": error_BMN.square().mean(dim=(1, 2)),
            "kl": gaussian_kl(posterior.mean, posterior.logvar).expand(len(mel_BMN)),
            "mean_BCTF": posterior.mean,
            "posterior_std": posterior.std.mean(dim=(1, 2, 3)),
        }

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out errors and the spread of each latent channel."""
        mean_BCTF = torch.cat([m["mean_BCTF"] for m in measured])
        quality: dict[str, Any] = {key: mean_of(measured, key) for key in ("mel_l1", "mel_l2", "kl", "posterior_std")}
        quality["channel_std"] = [round(v, 4) for v in mean_BCTF.std(dim=(0, 2, 3)).tolist()]
        return {"n": len(mean_BCTF), **quality}

    @torch.no_grad()
    def latent_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every latent channel over training windows, posterior noise included."""
        total_C = square_C = torch.zeros(self.part.config.latent_channels, dtype=torch.float64)
        count = 0
        vae = self.best.eval()
        device = next(vae.parameters()).device
        for batch in islice(self.trainer.datamodule.train_dataloader(), self.moments_batches):
            mel_BMN = self.mel.to(device)(batch.waveform_BS.to(device))
            posterior = vae.encode(self.to_image(mel_BMN)).latent_dist
            mean, var = posterior.mean.double().cpu(), posterior.var.double().cpu()
            total_C = total_C + mean.sum(dim=(0, 2, 3))
            square_C = square_C + (mean.square() + var).sum(dim=(0, 2, 3))
            count += mean.numel() // mean.shape[1]
        mean_C = total_C / count
        return mean_C, (square_C / count - mean_C.square()).sqrt()

    def save(self) -> None:
        """Write `vae/` with its latent moments; mel front end and latent patch go into the bundle's settings."""
        mean_C, std_C = self.latent_moments()
        vae = self.best
        # scaling_factor serves readers that know nothing of per-channel moments
        rms = (std_C.square() + mean_C.square()).mean().sqrt().item()
        vae.register_to_config(
            latents_mean=mean_C.tolist(), latents_std=std_C.tolist(), scaling_factor=1.0 / rms
        )
        save_part(self.bundle, "vae", vae)
        save_settings(self.bundle, mel=self.mel_config, latent_patch=self.latent_patch)
