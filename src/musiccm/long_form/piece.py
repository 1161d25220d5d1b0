"""A piece of any length by the shared restricted process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.long_form.model import MusicModel
from musiccm.long_form.prompts import PlannedCondition, PromptPlan, Prompts
from musiccm.samplers import (
    INITIAL,
    Crops,
    FrameNoise,
    SectionNoise,
    SharedProcess,
    Stepper,
    Wavefront,
    needed_crops,
    sample_shared,
)

DEFAULT_OVERLAP, DEFAULT_FUSION = 0.5, "swap"
"""Chosen by measurement, see docs/long.md."""


@dataclass(frozen=True)
class Piece:
    """All that fixes a piece: where its windows are, its noise, its texts and its exact length; and how it is made.

    Args:
        process: Sampler, crops and noise.
        condition: Texts along time.
        samples: Samples of sound; None without end.
    """

    process: SharedProcess
    condition: PlannedCondition
    samples: int | None

    @classmethod
    def of(
        cls,
        pipeline: MusicModel,
        prompts: Prompts,
        duration_s: float | None,
        stepper: Stepper,
        noise_seed: int | Sequence[int],
        overlap: float | None,
        fusion: str | None,
        begin_s: float = 0.0,
    ) -> Piece:
        """Lay a piece out.

        Args:
            pipeline: The model.
            prompts: Texts along time.
            duration_s: Seconds; None without end.
            stepper: The sampler.
            noise_seed: Of the piece's noise, or one for each text, of the noise from its start on.
            overlap: Shared part of neighbouring windows; the measured best by default.
            fusion: How windows are fused; the measured best by default.
            begin_s: Where the piece begins, in the time that the texts are planned in.

        Returns:
            The layout.
        """
        window = pipeline.latent_shape[1]
        samples = None if duration_s is None else max(1, round(duration_s * pipeline.sample_rate_hz))
        frames = None if samples is None else max(window, math.ceil(samples / pipeline.frame_samples))
        crops = Crops.overlapping(frames, window, DEFAULT_OVERLAP if overlap is None else overlap)
        frame_s, plan = pipeline.frame_samples / pipeline.sample_rate_hz, PromptPlan(prompts)
        noise: FrameNoise | SectionNoise
        if isinstance(noise_seed, int):
            noise = FrameNoise(noise_seed, pipeline.latent_shape)
        else:
            starts = [round(start_s / frame_s) for start_s, _ in plan.entries]
            noise = SectionNoise(noise_seed, starts, pipeline.latent_shape)
        process = SharedProcess(stepper, crops, noise, DEFAULT_FUSION if fusion is None else fusion, pipeline.device)
        condition = PlannedCondition(plan, pipeline.conditioner, pipeline.duration_s, frame_s, begin_s)
        return cls(process, condition, samples)

    @staticmethod
    def grid(pipeline: MusicModel) -> int:
        """Latent frames that what is kept and what is new must be multiples of."""
        return 1

    @property
    def plan(self) -> PromptPlan:
        """Texts along time."""
        return self.condition.plan

    @property
    def window(self) -> int:
        """Latent frames of a window."""
        return self.process.crops.window

    @property
    def length(self) -> int | None:
        """Latent frames of the piece; None without end."""
        return self.process.crops.length

    @property
    def stepper(self) -> Stepper:
        """The sampler at work."""
        return self.process.stepper

    def sample(self, batch_size: int) -> Tensor:
        """The whole piece, `[C, T, F]`, by so many windows a network call."""
        return sample_shared(self.process, self.cond_of, batch_size)

    def fill(self, clean_CTF: Tensor, kept_T: Tensor, seen_S: Tensor, batch_size: int) -> Tensor:
        """Make the frames that are not kept.

        Args:
            clean_CTF: Latents of the sound that is kept.
            kept_T: Which frames are.
            seen_S: That sound, from the piece's start on, which latents say all of here.
            batch_size: Windows a network call.

        Returns:
            The piece; kept frames are bit by bit as they were.
        """
        noise = self.process.fresh(INITIAL, 0, len(kept_T))
        initial = torch.where(kept_T[:, None].to(clean_CTF.device), self._noised(clean_CTF), noise)
        return sample_shared(self.process, self.cond_of, batch_size, initial_CTF=initial, kept_CTF=clean_CTF,
                             kept_T=kept_T)

    def vary(self, clean_CTF: Tensor, batch_size: int) -> Tensor:
        """Make all of it anew from latents with the noise of the sampler's first level."""
        return sample_shared(self.process, self.cond_of, batch_size, initial_CTF=self._noised(clean_CTF))

    def front(self) -> Wavefront:
        """The piece as it comes."""
        return Wavefront(self.process, self.cond_of)

    def change_at(self, begun: int) -> float | None:
        """Seconds from which another text can hold, of what a front has `begun`; None where nothing is left."""
        if not self.process.crops.exists(begun):
            return None
        return self.centre_s(begun) if begun else 0.0

    def _noised(self, clean_CTF: Tensor) -> Tensor:
        """Clean latents at the sampler's first noise level."""
        noise = self.process.fresh(INITIAL, 0, clean_CTF.shape[1])
        stepper = self.process.stepper
        return stepper.process.add_noise(clean_CTF, noise, torch.tensor(stepper.timesteps[0], device=noise.device))

    def cond_of(self, crop: int) -> Tensor:
        """Condition of a crop."""
        return self.condition.at(self.process.crops.start(crop))

    def centre_s(self, crop: int) -> float:
        """Middle of a crop, in seconds."""
        return self.condition.centre_s(self.process.crops.start(crop))

    def require_used_beside(self, kept_T: Tensor) -> None:
        """Refuse texts that nothing beside the frames that are kept would use.

        Raises:
            MusiccmError: There is such a text.
        """
        self.require_used(needed_crops(self.process.crops, kept_T))

    def require_used(self, crops: Sequence[int] | None = None) -> None:
        """Refuse texts that none of the crops, by default all, would use.

        Raises:
            MusiccmError: There is such a text.
        """
        count = self.process.crops.count
        if count is None:  # without end: as many as pass the last change
            count = math.ceil(self.condition.plan.entries[-1][0] / (self.centre_s(1) - self.centre_s(0))) + 1
        self.condition.plan.require_used(range(count) if crops is None else crops, self.centre_s)
