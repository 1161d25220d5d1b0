"""Models as the evaluator meets them: something that turns captions and noise into waveforms, call by call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion import NoiseProcess, sampling_timesteps
from musiccm.samplers import INITIAL, sample_ddim, sample_few_step, sample_noise, seeded_noise_fn

MODELS = ("teacher", "student", "student_fast", "student_shipped")


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Args:
        model: `teacher`, `student`, `student_fast` (by the bundle's fast decoder) or `student_shipped`.
        steps: Sampling steps.
        guidance_scale: None where the sampler does not guide.
        encode: `captions -> cond_BD`.
        sample: `(cond_BD, noise_BCTF, seeds) -> z_BCTF`.
        decode: `z_BCTF -> waveform_BS`.
        latent_shape: `(C, T, F)` of one clip.
        calls: Counts the samples that went through the network; None where it cannot be seen.
    """

    model: str
    steps: int
    guidance_scale: float | None
    encode: Callable[[list[str]], Tensor]
    sample: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    decode: Callable[[Tensor], Tensor]
    latent_shape: tuple[int, int, int]
    calls: CallCounter | None = None

    @property
    def label(self) -> str:
        """Such as `teacher@50`."""
        return f"{self.model}@{self.steps}"


class CallCounter:
    """Stands before a network function and counts the samples that pass, so that calls are measured, not assumed.

    Args:
        function: `(z_BCTF, t_B, cond_BD) -> Tensor`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.samples = 0

    def __call__(self, z_BCTF: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Count the batch and pass it on."""
        self.samples += z_BCTF.shape[0]
        return self.function(z_BCTF, *args, **kwargs)


def clip_seed(seed: int, clip_id: str) -> int:
    """The seed of one clip's noise: the same for every model, batch and rank.

    Args:
        seed: The evaluation's seed.
        clip_id: The clip whose caption is asked for.

    Returns:
        A number of 63 bits.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{clip_id}".encode(), digest_size=8).digest(), "little") >> 1


def initial_noise(seeds: Sequence[int], latent_shape: Sequence[int], device: torch.device | str) -> Tensor:
    """The noise from which every model starts.

    Args:
        seeds: One a clip, see `clip_seed`.
        latent_shape: `(C, T, F)`.
        device: Where to put it.

    Returns:
        `noise_BCTF`, float32.
    """
    return sample_noise(seeds, latent_shape, INITIAL).to(device)


def teacher_candidate(
    denoise: Callable[..., Tensor],
    schedule: NoiseProcess,
    conditioner: Any,
    codec: Any,
    latent_shape: tuple[int, int, int],
    steps: int,
    guidance_scale: float,
) -> Candidate:
    """The teacher, sampled by guided DDIM with trailing spacing.

    Args:
        denoise: The denoiser contract.
        schedule: Its noise schedule.
        conditioner: Has `text(list) -> [B, D]` and `null(B) -> [B, D]`.
        codec: Has `decode(z) -> waveform`.
        latent_shape: `(C, T, F)`.
        steps: DDIM steps; each is a pair of network calls where guided.
        guidance_scale: The usual scale; 1 is no guidance.

    Returns:
        The candidate.
    """
    counted = CallCounter(denoise)

    def sample(cond_BD: Tensor, noise_BCTF: Tensor, seeds: Sequence[int]) -> Tensor:
        null_BD = conditioner.null(len(cond_BD)).to(cond_BD)
        return sample_ddim(counted, schedule, cond_BD, null_BD, noise_BCTF, steps, guidance_scale)

    return Candidate(
        "teacher", steps, guidance_scale, conditioner.text, sample, codec.decode, latent_shape, counted
    )


def student_candidate(
    f: Callable[..., Tensor],
    schedule: NoiseProcess,
    conditioner: Any,
    codec: Any,
    latent_shape: tuple[int, int, int],
    steps: int,
    grid: Tensor,
    gamma: float = 1.0,
    model: str = "student",
) -> Candidate:
    """A distilled student, sampled in a few steps without guidance.

    Args:
        f: The consistency function.
        schedule: The noise schedule that it was trained with.
        conditioner: Has `text(list) -> [B, D]`.
        codec: Has `decode(z) -> waveform`.
        latent_shape: `(C, T, F)`.
        steps: Sampling steps, each one network call.
        grid: The student's training grid.
        gamma: Share of fresh noise between steps.
        model: What its row is called, one of `MODELS`.

    Returns:
        The candidate.
    """
    counted = CallCounter(f)
    timesteps = sampling_timesteps(steps, grid)

    def sample(cond_BD: Tensor, noise_BCTF: Tensor, seeds: Sequence[int]) -> Tensor:
        fresh = seeded_noise_fn(seeds, latent_shape)
        return sample_few_step(
            counted, schedule, cond_BD, noise_BCTF, timesteps, gamma, noise_fn=fresh, grid=grid
        )

    return Candidate(model, steps, None, conditioner.text, sample, codec.decode, latent_shape, counted)


def teachers(system: Any, all_steps: Sequence[int], guidance_scale: float) -> list[Candidate]:
    """The teacher at several step counts.

    Args:
        system: Has `teacher`, `schedule`, `conditioner`, `codec` and `bundle`.
        all_steps: Sampling steps.
        guidance_scale: The usual scale.

    Returns:
        A candidate each.
    """
    m, shape = system, system.bundle.latent_shape()
    return [
        teacher_candidate(m.teacher, m.schedule, m.conditioner, m.codec, shape, steps, guidance_scale)
        for steps in all_steps
    ]


def students(
    system: Any, all_steps: Sequence[int], gamma: float, codec: Any = None, model: str = "student"
) -> list[Candidate]:
    """The student, by its slow average, at several step counts.

    Args:
        system: Has `consistency`, `schedule`, `grid`, `conditioner`, `codec` and `bundle`.
        all_steps: Sampling steps.
        gamma: Share of fresh noise between steps.
        codec: Decodes in place of the system's own.
        model: What the rows are called.

    Returns:
        A candidate each.
    """
    m, shape, f = system, system.bundle.latent_shape(), system.consistency(which="slow")
    return [
        student_candidate(f, m.schedule, m.conditioner, codec or m.codec, shape, steps, m.grid, gamma, model)
        for steps in all_steps
    ]


def fast_students(system: Any, all_steps: Sequence[int], gamma: float) -> list[Candidate]:
    """The student with its bundle's fast decoder; none where the bundle has no such decoder.

    Args:
        system: See `students`; also has `device`.
        all_steps: Sampling steps.
        gamma: Share of fresh noise between steps.

    Returns:
        A candidate each.
    """
    if not all_steps or not system.bundle.has("decoder"):
        return []
    codec = system.bundle.codec("fast").to(system.device)
    return students(system, all_steps, gamma, codec, "student_fast")
