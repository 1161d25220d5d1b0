"""The few-step sampler of a distilled student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musiccm.diffusion import (
    AnyCondition,
    ConsistencyFunction,
    NoiseProcess,
    check_timesteps,
    refuse_guidance,
    student_grid,
)
from musiccm.samplers.base import StepCallback
from musiccm.samplers.noise import NoiseFn, resolve_noise_fn
from musiccm.samplers.rules import Lcm


@torch.no_grad()
def sample_few_step(
    f: ConsistencyFunction,
    schedule: NoiseProcess,
    cond_BD: AnyCondition,
    noise_BCTF: Tensor,
    timesteps: Sequence[int] | Tensor,
    gamma: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    noise_fn: NoiseFn | None = None,
    grid: Tensor | None = None,
    guidance_scale: float | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Multistep consistency sampling by `Lcm`, over timesteps that are held against the student's grid.

    Args:
        f: the consistency function, `(z, t, cond) -> x0`.
        schedule: the noise schedule that it was trained with.
        cond_BD: condition embeddings.
        noise_BCTF: initial noise, drawn from N(0, I); its device and shape are the result's.
        timesteps: strictly descending, on the grid; see `sampling_timesteps`.
        gamma: share of fresh noise in [0, 1].
        generator: source of the fresh noise, drawn step by step on the generator's device.
        noise_fn: the same as a function of the step index 0, 1, ...; one of the two is needed if any noise is drawn.
        grid: the student's training grid; the 50-point grid if not given.
        guidance_scale: refused unless it is none or 1: a distilled student is not guided.
        callback: called with `(step, t, x0)` after each network call.

    Returns:
        The last x0, `[B, C, T, F]`, float32 or better.

    Raises:
        MusiccmError: for guidance, off-grid timesteps, a gamma outside [0, 1], or no source of noise.
    """
    refuse_guidance(guidance_scale)
    chosen = check_timesteps(timesteps, student_grid(schedule.num_train_timesteps) if grid is None else grid)
    sampler = Lcm(gamma)
    draws = len(chosen) > 1 and gamma > 0.0
    fresh = resolve_noise_fn(noise_BCTF.shape, generator, noise_fn) if draws else None
    return sampler.sample(lambda z, t: f(z, t, cond_BD), schedule, noise_BCTF, chosen, fresh, callback)
