"""MeLoDy's angles (Lam et al. 2023, arXiv 2305.15719): how they are walked down, and angles that change along time.

At angle d a latent is `z_d = cos(d) z_0 + sin(d) eps` and its velocity `v = cos(d) eps - sin(d) z_0`, the derivative by
the angle: a step down by w is the rotation `cos(w) z_d - sin(w) v`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from musiccm.bounds import ANGLE_SCHEDULES
from musiccm.diffusion.process import NoiseProcess, compute_dtype
from musiccm.errors import MusiccmError

#: The way from noise to clean.
QUARTER = math.pi / 2


def schedule_angles(steps: int, kind: str) -> list[float]:
    """The angles at which a network is called on the way from pi / 2 to 0.

    The t-th from the end is the sum of the steps `w_1 + ... + w_t`: uniform `w_t = pi / 2T`, proposed
    `w_t = pi / 6T + 2 pi t / (3 T (T + 1))` (MeLoDy, section 4.3), whose sums are
    `pi t / 6T + pi t (t + 1) / (3 T (T + 1))`.

    Args:
        steps: Number of steps T.
        kind: One of `ANGLE_SCHEDULES`.

    Returns:
        Descending angles, T of them; the first is pi / 2, and the step after the last one lands on 0.

    Raises:
        MusiccmError: There are no steps, or no schedule of this name.
    """
    if kind not in ANGLE_SCHEDULES:
        raise MusiccmError(f"angle schedule: expected one of {', '.join(ANGLE_SCHEDULES)}, found {kind!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MusiccmError(f"steps: expected a whole number from 1, found {steps!r}")
    if kind == "uniform":
        below = [QUARTER * t / steps for t in range(1, steps)]
    else:
        below = [math.pi * t / (6 * steps) + math.pi * t * (t + 1) / (3 * steps * (steps + 1)) for t in range(1, steps)]
    return [QUARTER, *reversed(below)]


def angle_timesteps(process: NoiseProcess, steps: int, kind: str) -> list[float]:
    """The timesteps of a noise process at which `schedule_angles` are, or come closest to where they must be whole.

    Args:
        process: Any process; its angle is that of `(alpha, sigma)`.
        steps: Number of steps.
        kind: One of `ANGLE_SCHEDULES`.

    Returns:
        Strictly descending timesteps, all above 0.

    Raises:
        MusiccmError: The process has too few noise levels for so many steps.
    """
    timesteps = process.timesteps_at(schedule_angles(steps, kind))
    descending = all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False))
    if not descending or timesteps[-1] <= 0:
        raise MusiccmError(f"steps: {steps} by the angle schedule '{kind}' come closer to each other, or to clean, "
                           f"than the {process.num_train_timesteps} noise levels of the model; ask for fewer steps")
    return timesteps


def rotate(z: Tensor, velocity: Tensor, by: float | Tensor) -> Tensor:
    """One step down: `z_{d-w} = cos(w) z_d - sin(w) v` (MeLoDy, equation 12).

    Args:
        z: Latents at angle d.
        velocity: Their velocity.
        by: The angle w; a tensor must broadcast against `z`.

    Returns:
        Latents at angle d - w.
    """
    w = torch.as_tensor(by, dtype=compute_dtype(z), device=z.device)
    return torch.cos(w) * z - torch.sin(w) * velocity


def spread_chunks(angle_BM: Tensor, frames: int) -> Tensor:
    """Values of M chunks to values of frames: the m-th holds from `floor((m - 1) L / M)` to before `floor(m L / M)`.

    Args:
        angle_BM: One value a chunk, `[B, M, ...]`; M = 1 is the same for all frames, M = L one for each.
        frames: Number of frames L.

    Returns:
        [B, L, ...].

    Raises:
        MusiccmError: There are more chunks than frames.
    """
    chunks = angle_BM.shape[1]
    if not 1 <= chunks <= frames:
        raise MusiccmError(f"angles: expected those of 1 to {frames} chunks, as there are {frames} frames, found "
                           f"{chunks}")
    if chunks == frames:
        return angle_BM
    # the last m with floor(m L / M) <= t
    chunk_T = ((torch.arange(frames, device=angle_BM.device) + 1) * chunks - 1) // frames
    return angle_BM[:, chunk_T]


def noised_at(z0_BCTF: Tensor, eps_BCTF: Tensor, angle_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and their velocity where every frame has an angle of its own.

    Args:
        z0_BCTF: Clean latents.
        eps_BCTF: Standard normal noise.
        angle_BT: Angles in radians.

    Returns:
        `(z, v)` of the shape of `z0_BCTF`. At angle 0 z is `z0_BCTF` bit by bit, and v the noise.
    """
    cos, sin = torch.cos(angle_BT)[:, None, :, None], torch.sin(angle_BT)[:, None, :, None]
    return cos * z0_BCTF + sin * eps_BCTF, cos * eps_BCTF - sin * z0_BCTF
