"""The few-step sampler of a distilled student."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from musiccm.diffusion import (
    ConsistencyFunction,
    NoiseSchedule,
    check_timesteps,
    compute_dtype,
    refuse_guidance,
    student_grid,
    to_eps,
)
from musiccm.errors import MusiccmError
from musiccm.samplers.noise import NoiseFn, resolve_noise_fn

StepCallback = Callable[[int, int, Tensor], None]
"""`callback(step, t, x0_BCTF)`, called after every network call."""


@torch.no_grad()
def sample_few_step(
    f: ConsistencyFunction,
    schedule: NoiseSchedule,
    cond_BD: Tensor,
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
    """Multistep consistency sampling (LCM, arXiv 2310.04378, algorithm 3), with adjustable stochasticity.

    At each timestep `x0 = f(z, t, c)`. Unless it is the last, `z = alpha_next x0 + sigma_next eps_mix` with
    `eps_mix = sqrt(1 - gamma^2) eps_pred + gamma eps_fresh`, which has unit variance whenever both noises have, and
    `eps_pred = (z - alpha x0)/sigma`. gamma = 1 is LCM's sampler exactly; gamma = 0 is deterministic, DDIM with f in
    place of the denoiser.

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
    schedule_T = check_timesteps(timesteps, student_grid(schedule.num_train_timesteps) if grid is None else grid)
    if not 0.0 <= gamma <= 1.0:
        raise MusiccmError(f"gamma: expected a number in [0, 1], found {gamma}.")
    draws = len(schedule_T) > 1 and gamma > 0.0
    fresh = resolve_noise_fn(noise_BCTF.shape, generator, noise_fn) if draws else None
    dtype = compute_dtype(noise_BCTF)
    z = noise_BCTF.to(dtype)
    # All that comes from the host is sent before the first network call: from then on a GPU is never waited for.
    t_SB = torch.tensor(schedule_T).to(z.device)[:, None].expand(-1, len(z))
    drawn = [] if fresh is None else [fresh(step).to(z) for step in range(len(schedule_T) - 1)]
    x0 = z
    for step, t_B in enumerate(t_SB):
        x0 = f(z, t_B, cond_BD).to(dtype)
        if callback is not None:
            callback(step, schedule_T[step], x0)
        if step + 1 == len(schedule_T):
            break
        eps = torch.zeros_like(z)
        if gamma < 1.0:
            predicted = to_eps("sample", x0, z, schedule.alpha(t_B, dtype), schedule.sigma(t_B, dtype))
            eps = math.sqrt(1.0 - gamma * gamma) * predicted
        if drawn:
            eps = eps + gamma * drawn[step]
        z = schedule.add_noise(x0, eps, t_SB[step + 1])
    return x0
