"""The teacher's sampler: deterministic DDIM, the baseline that a student is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.diffusion import AnyCondition, Denoise, NoiseProcess, with_guidance
from musiccm.errors import MusiccmError
from musiccm.samplers.base import StepCallback
from musiccm.samplers.rules import Ddim


def trailing_timesteps(steps: int, num_train_timesteps: int) -> list[int]:
    """Evenly spaced timesteps that start at the noisiest level: 999, 979, ..., 19 for 50 of 1000.

    The `trailing` spacing of diffusers (arXiv 2305.08891, table 2), the best of the usual ones at few steps.

    Args:
        steps: number of steps.
        num_train_timesteps: number of noise levels.

    Returns:
        Descending timesteps.

    Raises:
        MusiccmError: if `steps` is not a whole number from 1 to half of `num_train_timesteps`.
    """
    # With more steps the lowest timestep would be 0, which as the target of a jump means clean already.
    most = num_train_timesteps // 2
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise MusiccmError(f"steps: expected a whole number from 1 to {most}, found {steps!r}.")
    return [round((steps - i) * num_train_timesteps / steps) - 1 for i in range(steps)]


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    schedule: NoiseProcess,
    cond_BD: AnyCondition,
    null_BD: AnyCondition | None,
    noise_BCTF: Tensor,
    steps: int,
    guidance_scale: float,
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample the teacher by DDIM with eta = 0 (arXiv 2010.02502), trailing spacing, guided.

    Each step is one network call of the (condition, null) pair, or of the condition alone at scale 1. The last jump
    lands on clean, i.e. returns x0 (diffusers' `set_alpha_to_one=True`), not on the first noise level.

    Args:
        denoise: the teacher, `(z, t, cond) -> x0`.
        schedule: its noise schedule.
        cond_BD: condition embeddings.
        null_BD: null-condition embeddings, `[B, D]` or `[1, D]`; may be none at scale 1.
        noise_BCTF: initial noise, drawn from N(0, I).
        steps: number of steps.
        guidance_scale: the usual scale (`guide`): 1 is no guidance, MusicLDM's default is 2.
        callback: called with `(step, t, x0)` after each network call.

    Returns:
        Clean latents `[B, C, T, F]`, float32 or better.

    Raises:
        MusiccmError: if `steps` is out of range, or guidance is asked for without a null condition.
    """
    timesteps = trailing_timesteps(steps, schedule.num_train_timesteps)
    guided = with_guidance(denoise, cond_BD, null_BD, guidance_scale)
    return Ddim().sample(guided, schedule, noise_BCTF, timesteps, callback=callback)
