"""The fast decoder: latents to waveform, learnt from real audio and from the slow pair of VAE decoder and vocoder."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from musiccm.audio.mel import LogMel
from musiccm.data.batch import WaveformBatch
from musiccm.device import sent
from musiccm.losses.spectral import MultiResolutionStft
from musiccm.losses.waveform_adversarial import waveform_adversarial
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.codec import SoundEncoder
from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.spectrogram_discriminator import SpectrogramDiscriminator
from musiccm.systems.parallel import normal_like
from musiccm.systems.stages.base import Stage, mean_of


class DecoderStage(Stage):
    """Trains a `FastDecoder` on the latents of the bundle's VAE, of a mel or of sound.

    Most clips are encoded and have themselves for a target. The others' latents are pushed off the data by noise, as a
    sampler's may be; what the slow pair makes of these is the target.

    Args:
        decoder: `FastDecoderConfig` fields; those of the latents must be the VAE's.
        fft_sizes: Resolutions of the STFT loss, in samples.
        stft_weight: Weight of the multi-resolution STFT loss.
        mel_weight: Weight of the L1 distance of log-mels.
        adversarial_weight: Weight of the adversarial loss with feature matching; 0 trains without a discriminator.
        adversarial_start: First step of the adversarial loss.
        discriminator: `SpectrogramDiscriminator` arguments.
        distilled_share: Share of the clips, 0..1, that are learnt from the slow pair.
        distilled_noise: Deviation of the noise on their standardised latents.
        **stage: Arguments of `Stage`.
    """

    stage = "decoder"
    part_name = "decoder"
    draws_noise = True
    part: FastDecoder
    kinds = {"not_negative": "stft_weight mel_weight adversarial_weight distilled_noise",
             "index": "adversarial_start", "share": "distilled_share"}

    def __init__(
        self,
        decoder: dict[str, Any],
        fft_sizes: Sequence[int] = (256, 512, 1024, 2048),
        stft_weight: float = 1.0,
        mel_weight: float = 4.0,
        adversarial_weight: float = 0.0,
        adversarial_start: int = 0,
        discriminator: dict[str, Any] | None = None,
        distilled_share: float = 0.125,
        distilled_noise: float = 0.3,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        bundle = Bundle.from_pretrained(self.bundle, parts=[])  # those of the codec are checked as they are read
        # held outside the module tree: frozen, not trained, not in this stage's checkpoints
        self._encoder = [SoundEncoder(bundle.codec("original")).requires_grad_(False)]
        self.part = FastDecoder(decoder)
        self.part.check_latents(self.codec.raw_latents(), "model.init_args.decoder.")
        self.mel, self.sample_rate_hz = LogMel(bundle.mel), bundle.sample_rate_hz
        self.stft = MultiResolutionStft(fft_sizes)
        self.stft_weight, self.mel_weight = stft_weight, mel_weight
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.discriminator = SpectrogramDiscriminator(**(discriminator or {})) if adversarial_weight > 0.0 else None
        self.distilled_share, self.distilled_noise = distilled_share, distilled_noise
        self.finish_init()

    @property
    def codec(self) -> Any:
        """The slow pair, a `LatentCodec`; an `AudioVae`, which has a decoder of its own."""
        return self._encoder[0].codec

    def encode(self, waveform_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the raw latents."""
        (encoder,) = self._encoder
        return encoder.moments(encoder.front(waveform_BS))

    def trained(self) -> list[nn.Module]:
        """The decoder and its discriminator."""
        return [self.part] if self.discriminator is None else [self.part, self.discriminator]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a checkpoint of version 0.1, where the discriminator had another name."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {re.sub(r"^judge\.", "discriminator.", name): value for name, value in state.items()}
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Bring the slow pair to the device."""
        self._encoder[0].to(self.device)

    @torch.no_grad()
    def pairs(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standardised latents `[B, C, T, F]`, and what they are to sound like, `[B, S]`."""
        target_BS = batch.waveform_BS.clone()
        mean_BCTF, std_BCTF = self.encode(target_BS)
        noise_BCTF = normal_like(mean_BCTF, generator)
        distilled_B = torch.rand(len(target_BS), generator=generator) < self.distilled_share
        latents_BCTF = self.codec.standardise(mean_BCTF + std_BCTF * noise_BCTF)
        if distilled_B.any():
            chosen = sent(distilled_B.nonzero()[:, 0], target_BS.device)
            push = normal_like(latents_BCTF[chosen], generator)
            latents_BCTF[chosen] += self.distilled_noise * push
            z_BCTF = F.pixel_unshuffle(latents_BCTF[chosen], self.codec.latent_patch)
            target_BS[chosen] = self.codec.decode(z_BCTF)
        return latents_BCTF, target_BS

    def compare(self, predicted_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted STFT and log-mel distances."""
        stft, parts = self.stft(predicted_BS, target_BS)
        parts["mel_l1"] = F.l1_loss(self.mel(predicted_BS), self.mel(target_BS))
        return self.stft_weight * stft + self.mel_weight * parts["mel_l1"], parts

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Distances, and the adversarial term of both sides once it has begun."""
        latents_BCTF, target_BS = self.pairs(batch, generator)
        predicted_BS = self.part(latents_BCTF)
        total, parts = self.compare(predicted_BS, target_BS)
        if self.discriminator is not None and self.global_step >= self.adversarial_start:
            loss_g, loss_d, found = waveform_adversarial(self.discriminator, predicted_BS, target_BS)
            total = total + self.adversarial_weight * loss_g + loss_d
            parts |= found
        return total, parts

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Distances from the clips, of this decoder and of the slow pair, by the mean of the posterior."""
        raw_BCTF, _ = self.encode(batch.waveform_BS)
        latents_BCTF = self.codec.standardise(raw_BCTF)
        sides = {"": self.best(latents_BCTF), "slow_": self.codec.decode(self.codec.normalise(raw_BCTF))}
        result: dict[str, Any] = {}
        for name, predicted_BS in sides.items():
            _, parts = self.compare(predicted_BS, batch.waveform_BS)
            result |= {f"{name}{key}": value.expand(len(raw_BCTF)) for key, value in parts.items()}
        return result

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out distances of both, and the cost of one clip of the validation's length."""
        n = sum(len(m["mel_l1"]) for m in measured)
        return {"n": n} | {key: mean_of(measured, key) for key in measured[0]} | self.cost()

    @torch.no_grad()
    def cost(self, repeats: int = 3) -> dict[str, float]:
        """GFLOP (two a multiply-add) and best-of-`repeats` seconds a second of sound, of both."""
        c, rate_hz = self.part.config, self.sample_rate_hz
        frames = self.codec.latent_patch * round(4 * rate_hz / c.latent_hop / self.codec.latent_patch)
        duration_s = frames * c.latent_hop / rate_hz
        latents_BCTF = torch.zeros(1, c.latent_channels, frames, c.latent_bins, device=self.device)
        z_BCTF = F.pixel_unshuffle(latents_BCTF, self.codec.latent_patch)
        result: dict[str, float] = {}
        for name, decode in {"": lambda: self.best(latents_BCTF), "slow_": lambda: self.codec.decode(z_BCTF)}.items():
            with FlopCounterMode(display=False) as counter:
                decode()
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                decode()[0, 0].item()
                seconds.append(time.perf_counter() - start)
            result |= {f"{name}gflop_a_second": counter.get_total_flops() / 1e9 / duration_s,
                       f"{name}latency_a_second_s": min(seconds) / duration_s}
        return result

    def save(self) -> None:
        """Write `decoder/`."""
        save_part(self.bundle, "decoder", self.best)
