"""The paths that a guided teacher takes from pure noise to clean latents, by the sampler that samples it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musiccm.diffusion import BoundDenoise, NoiseProcess
from musiccm.samplers import make_sampler
from musiccm.samplers.steppers import TEACHER_SAMPLER, trailing_timesteps


def kept_timesteps(steps: int, points: int, num_train_timesteps: int) -> list[int]:
    """Which points of a path are kept: evenly spaced ones of those that the sampler calls the teacher at, from the top.

    Args:
        steps: of the teacher's sampler.
        points: how many are kept.
        num_train_timesteps: number of noise levels.

    Returns:
        Descending timesteps.
    """
    timesteps = trailing_timesteps(steps, num_train_timesteps)
    return [timesteps[n * steps // points] for n in range(points)]


@torch.no_grad()
def roll_out(
    teacher: BoundDenoise, process: NoiseProcess, noise_BCTF: Tensor, steps: int, kept: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sample a batch and keep points of the way.

    Args:
        teacher: the guided teacher, `(z, t) -> x0`.
        process: its noise process.
        noise_BCTF: where the paths begin, drawn from N(0, I).
        steps: of the teacher's own sampler, DDIM with trailing timesteps.
        kept: timesteps at which the latents are kept.

    Returns:
        `(points_BPCTF, end_BCTF)`.
    """
    points: list[Tensor] = []
    timesteps = trailing_timesteps(steps, process.num_train_timesteps)
    left = iter(timesteps)

    def watched(z: Tensor, t_B: Tensor) -> Tensor:
        if next(left) in kept:  # what t_B says, without asking a device for it
            points.append(z)
        return teacher(z, t_B)

    end = make_sampler(TEACHER_SAMPLER).sample(watched, process, noise_BCTF, timesteps)
    return torch.stack(points, 1), end
