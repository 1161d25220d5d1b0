"""What long music, streams, edits and evaluation need of a model, whichever system it is of."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from musiccm.models.codec import LatentCodec
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.samplers import SamplerSpec, Stepper


class MusicModel(Protocol):
    """A model that makes music from text by denoising latents; `Pipeline` is one."""

    @property
    def codec(self) -> LatentCodec | AudioVae:
        """Between latents and sound."""

    @property
    def conditioner(self) -> Any:
        """Has `text(list[str])`, `prompts(list[str], seeds)`, both to a batch of `AnyCondition`, and `null(B)`."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, T, F)` of a clip of the trained length."""

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""

    @property
    def frame_samples(self) -> int:
        """Samples of a latent frame."""

    @property
    def duration_s(self) -> float:
        """Seconds of a clip of the trained length."""

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """The model's sampler at work: network, noise levels and rule; see `Pipeline.stepper`."""
