"""What long music, streams and edits need of a model, whichever system it is of."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from musiccm.models.codec import LatentCodec
from musiccm.samplers import Stepper


class MusicModel(Protocol):
    """A model that makes music from text by denoising latents; `Pipeline` is one."""

    codec: LatentCodec
    conditioner: Any
    """Has `prompts(list[str]) -> [B, D]`."""
    device: torch.device
    latent_shape: tuple[int, int, int]
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
        gamma: float | None = None,
        strength: float = 1.0,
        sampler: Any = None,
    ) -> Stepper:
        """The model's sampler at work: network, noise levels and rule; see `Pipeline.stepper`."""
