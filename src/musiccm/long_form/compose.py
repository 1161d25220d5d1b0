"""A piece of any length, made whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.long_form.direct import piece_decoder
from musiccm.long_form.model import MusicModel
from musiccm.long_form.prompts import PlannedCondition, PromptPlan, Prompts
from musiccm.samplers import Crops, FrameNoise, SectionNoise, SharedProcess, Stepper, sample_shared

MAX_WHOLE_S = 3600.0
"""Longest piece that is made whole, whose latents and sound are held in memory; a stream has no such limit."""

MAX_STREAM_S = 1e9
"""Longest stream of a stated length, 32 years: far beyond any file, and its samples still are exact numbers."""

DEFAULT_OVERLAP, DEFAULT_FUSION = 0.5, "swap"
"""Chosen by measurement, see docs/long.md."""


def check_duration(duration_s: Any, longest_s: float = MAX_WHOLE_S, advice: str = "stream longer music") -> float:
    """Refuse lengths that no piece can have.

    Args:
        duration_s: What was asked for.
        longest_s: The limit.
        advice: What to do about more.

    Returns:
        The seconds.

    Raises:
        MusiccmError: Not a number above 0 and up to the limit.
    """
    if isinstance(duration_s, bool) or not isinstance(duration_s, int | float) or not 0 < duration_s <= longest_s:
        raise MusiccmError(f"duration: expected seconds above 0 and up to {longest_s:g}, found {duration_s!r}; "
                           f"{advice}")
    return float(duration_s)


def check_batch(batch_size: Any) -> int:
    """Refuse batches that hold nothing.

    Args:
        batch_size: What was asked for.

    Returns:
        It.

    Raises:
        MusiccmError: Not a whole number from 1 on.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise MusiccmError(f"batch_size: expected a whole number from 1 on, found {batch_size!r}")
    return batch_size


@dataclass(frozen=True)
class Piece:
    """All that fixes a piece: where its windows are, its noise, its texts and its exact length.

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

    def cond_of(self, crop: int) -> Tensor:
        """Condition of a crop."""
        return self.condition.at(self.process.crops.start(crop))

    def centre_s(self, crop: int) -> float:
        """Middle of a crop, in seconds."""
        return self.condition.centre_s(self.process.crops.start(crop))

    def require_used(self, crops: Sequence[int] | None = None) -> None:
        """Refuse texts that none of the crops, by default all, would use.

        Raises:
            MusiccmError: There is such a text.
        """
        count = self.process.crops.count
        if count is None:  # without end: as many as pass the last change
            count = math.ceil(self.condition.plan.entries[-1][0] / (self.centre_s(1) - self.centre_s(0))) + 1
        self.condition.plan.require_used(range(count) if crops is None else crops, self.centre_s)


def compose(
    pipeline: MusicModel,
    prompts: Prompts,
    duration_s: float,
    stepper: Stepper,
    noise_seed: int | Sequence[int],
    *,
    overlap: float | None = None,
    fusion: str | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Make a piece of any length by the shared restricted process.

    Args:
        pipeline: The model.
        prompts: One text, or `(start_s, text)` pairs.
        duration_s: Seconds, up to `MAX_WHOLE_S`; the sound has exactly this length.
        stepper: The sampler.
        noise_seed: Of the piece's noise, or one for each text.
        overlap: Shared part of neighbouring windows, from 0 to below 1.
        fusion: `uniform`, `triangular` or `swap`.
        batch_size: Windows a network call.

    Returns:
        Waveform of shape [S] on the CPU, float32.

    Raises:
        MusiccmError: For lengths, texts, overlaps or fusions out of range.
    """
    check_batch(batch_size)
    piece = Piece.of(pipeline, prompts, check_duration(duration_s), stepper, noise_seed, overlap, fusion)
    piece.require_used()
    with torch.inference_mode():
        sound_S = decode_whole(pipeline, sample_shared(piece.process, piece.cond_of, batch_size), batch_size)
    return sound_S[: piece.samples].clone()  # outside the mode: a tensor like any other


def decode_whole(pipeline: MusicModel, z_CTF: Tensor, batch_size: int = 8) -> Tensor:
    """Sound of a whole piece's latents.

    Args:
        pipeline: The model.
        z_CTF: Latents, at least a window long.
        batch_size: Windows decoded at once where there is a GPU; a CPU is fastest with one.

    Returns:
        Waveform of shape [S] on the CPU.
    """
    batch_size = batch_size if z_CTF.device.type != "cpu" else 1
    window = pipeline.latent_shape[1]
    if pipeline.codec.decoder is not None:  # takes any length: what would be a batch is one longer stretch
        window, batch_size = window * batch_size, 1
    decoder = piece_decoder(pipeline.codec, window, z_CTF.shape[1], batch_size)
    return decoder.push(z_CTF)
