"""The vocoder: transformers' `SpeechT5HifiGan` trained by spectral distances alone."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.errors import MusiccmError
from musiccm.losses.spectral import MultiResolutionStft
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.files import save_part
from musiccm.models.codec import LatentCodec
from musiccm.systems.stages.base import Stage, mean_of


class VocoderStage(Stage):
    """Trains mel to waveform on short segments, optionally on the VAE's reconstructions of them.

    Args:
        vocoder: `SpeechT5HifiGanConfig` fields; `model_in_dim`, `sampling_rate` and the product of `upsample_rates`
            must agree with the mel front end.
        mel: mel front end.
        segment_frames: mel frames of a training segment.
        margin_frames: frames on either side from which a segment's mel is computed and then cut; at least
            `n_fft / 2 / hop`, or its edges would see the padding. With the VAE, `segment_frames + 2 margin_frames`
            must be a multiple of its downsampling.
        fft_sizes: resolutions of the STFT loss, in samples.
        stft_weight: weight of the multi-resolution STFT loss.
        mel_weight: weight of the L1 distance of log-mels.
        reconstructed_share: share of the training segments, 0..1, whose mel first goes through the bundle's VAE: what
            the vocoder gets in use. Needs `vae/` in the bundle.
        cost_frames: mel frames of the clip whose GFLOP and latency are reported.
        mel_mean: what `normalize_before` subtracts from the mel, where the vocoder's configuration asks for it.
        mel_std: what it divides by.
        **stage: arguments of `Stage`.
    """

    stage = "vocoder"
    part_name = "vocoder"
    part: SpeechT5HifiGan
    kinds = {"count": "segment_frames cost_frames", "index": "margin_frames", "share": "reconstructed_share",
             "not_negative": "stft_weight mel_weight", "positive": "mel_std", "finite": "mel_mean"}

    def __init__(
        self,
        vocoder: dict[str, Any],
        mel: MelConfig | None = None,
        segment_frames: int = 56,
        margin_frames: int = 4,
        fft_sizes: tuple[int, ...] = (256, 512, 1024, 2048),
        stft_weight: float = 1.0,
        mel_weight: float = 1.0,
        reconstructed_share: float = 0.0,
        cost_frames: int = 512,
        mel_mean: float = -5.0,
        mel_std: float = 3.0,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.mel_config = mel or MelConfig()
        self.mel = LogMel(self.mel_config)
        self.part = SpeechT5HifiGan(SpeechT5HifiGanConfig(**vocoder)).train()
        # transformers starts every weight at 0.01, which five stages turn into silence
        for module in self.part.modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                module.reset_parameters()
        if self.part.config.normalize_before:
            self.part.mean.fill_(mel_mean)
            self.part.scale.fill_(mel_std)
        self.check_dimensions()
        self.segment_frames, self.margin_frames, self.cost_frames = segment_frames, margin_frames, cost_frames
        self.stft_weight, self.mel_weight = stft_weight, mel_weight
        self.stft = MultiResolutionStft(fft_sizes)
        self.reconstructed_share = reconstructed_share
        # held outside the module tree: frozen, not trained, not in this stage's checkpoints
        self._codec: list[LatentCodec] = []
        self.finish_init()

    def check_dimensions(self) -> None:
        """Refuse a vocoder whose numbers differ from the mel front end's."""
        config, mel = self.part.config, self.mel_config
        for key, found, expected in (
            ("model_in_dim", config.model_in_dim, mel.n_mels),
            ("sampling_rate", config.sampling_rate, mel.sample_rate_hz),
            ("product of upsample_rates", math.prod(config.upsample_rates), mel.hop_length),
        ):
            if found != expected:
                raise MusiccmError(f"vocoder: {key} is {found}, but the mel front end needs {expected}; change either")

    def on_fit_start(self) -> None:
        """Read the VAE when its reconstructions are asked for."""
        if self.reconstructed_share > 0.0:
            bundle = Bundle.from_pretrained(self.bundle, parts=["vae"])
            self._codec = [bundle.codec("none").to(self.device)]

    @torch.no_grad()
    def reconstruct(self, mel_BMN: Tensor) -> Tensor:
        """Mels through the frozen VAE."""
        return self._codec[0].reconstruct(mel_BMN)

    def vocode(self, vocoder: torch.nn.Module, mel_BMN: Tensor) -> Tensor:
        """Waveform of exactly `frames * hop` samples; the transposed convolutions emit a few more."""
        return vocoder(mel_BMN)[:, : mel_BMN.shape[1] * self.mel_config.hop_length]

    def segments(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random segments: their mels, equal to those frames of the whole clip's mel, and their waveforms."""
        hop = self.mel_config.hop_length
        wide = self.segment_frames + 2 * self.margin_frames
        spare = batch.waveform_BS.shape[1] // hop - wide
        if spare < 0:
            raise MusiccmError(
                f"data.clip_samples: a vocoder segment with its margins needs {wide * hop} samples, found "
                f"{batch.waveform_BS.shape[1]}; lengthen the clips or lower model.segment_frames"
            )
        starts_B = torch.randint(spare + 1, (len(batch.ids),), generator=generator).tolist()
        waves_BS = torch.stack([
            wave[s * hop : (s + wide) * hop] for wave, s in zip(batch.waveform_BS, starts_B, strict=True)
        ])
        mel_BMN = self.mel(waves_BS)
        if self.reconstructed_share > 0.0:
            chosen_B = (torch.rand(len(mel_BMN), generator=generator) < self.reconstructed_share).to(mel_BMN.device)
            if chosen_B.any():
                mel_BMN[chosen_B] = self.reconstruct(mel_BMN[chosen_B])
        inner = slice(self.margin_frames, self.margin_frames + self.segment_frames)
        return mel_BMN[:, inner], waves_BS[:, inner.start * hop : inner.stop * hop]

    def compare(self, predicted_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted STFT and log-mel distances."""
        stft, parts = self.stft(predicted_BS, target_BS)
        parts["mel_l1"] = F.l1_loss(self.mel(predicted_BS), self.mel(target_BS))
        return self.stft_weight * stft + self.mel_weight * parts["mel_l1"], parts

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Distances of one segment a clip."""
        mel_BMN, target_BS = self.segments(batch, generator)
        return self.compare(self.vocode(self.part, mel_BMN), target_BS)

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Distances of whole clips, from their own mel and, where there is a VAE, from its reconstruction."""
        mel_BMN = self.mel(batch.waveform_BS)
        target_BS = batch.waveform_BS[:, : mel_BMN.shape[1] * self.mel_config.hop_length]
        sources = {"": mel_BMN} | ({"reconstructed_": self.reconstruct(mel_BMN)} if self._codec else {})
        result: dict[str, Any] = {}
        for name, source_BMN in sources.items():
            _, parts = self.compare(self.vocode(self.best, source_BMN), target_BS)
            result |= {f"{name}{key}": value.expand(len(mel_BMN)) for key, value in parts.items()}
        return result

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out distances, and the cost of one clip."""
        keys = list(measured[0])
        n = sum(len(m[keys[0]]) for m in measured)
        return {"n": n} | {key: mean_of(measured, key) for key in keys} | self.cost()

    @torch.no_grad()
    def cost(self, repeats: int = 3) -> dict[str, float]:
        """GFLOP (two a multiply-add) and best-of-`repeats` seconds to vocode one clip of `cost_frames`."""
        mel_BMN = torch.zeros(1, self.cost_frames, self.mel_config.n_mels, device=self.device)
        with FlopCounterMode(display=False) as counter:
            self.vocode(self.best, mel_BMN)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.vocode(self.best, mel_BMN)[0, 0].item()
            seconds.append(time.perf_counter() - start)
        return {"gflop_a_clip": counter.get_total_flops() / 1e9, "latency_s": min(seconds)}

    def save(self) -> None:
        """Write `vocoder/` and the mel front end it was trained for."""
        save_part(self.bundle, "vocoder", self.best)
        save_settings(self.bundle, mel=self.mel_config)
