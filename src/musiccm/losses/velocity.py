"""The loss of velocities where latents have a noise level a chunk (MeLoDy, arXiv 2305.15719, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_angles(
    batch: int,
    chunks: int,
    generator: torch.Generator,
    continuation_share: float = 0.0,
    held_chunks: Sequence[int] = (),
    inpainting_share: float = 0.0,
) -> Tensor:
    """One angle a chunk, uniform in [0, pi / 2) and independent of the others of its item; 0 for chunks that are clean.

    Uniform draws alone have no mass at exactly 0, where a continuation holds the music that it goes on from: a network
    trained by them would be asked what it has never seen.

    Args:
        batch: Items.
        chunks: Chunks M of an item.
        generator: Source of randomness; its device is the result's. Each chunk's draws are stratified over the batch.
        continuation_share: Share of items whose first chunks are clean.
        held_chunks: How many of them; one of these numbers is drawn.
        inpainting_share: Share of items of which one chunk is noisy and the others are clean.

    Returns:
        Angles in radians, [B, M].
    """
    device = generator.device
    strata = torch.stack([torch.randperm(batch, generator=generator, device=device) for _ in range(chunks)], dim=1)
    angle_BM = (strata + torch.rand(batch, chunks, generator=generator, device=device)) / batch * (math.pi / 2)
    held_BM = draw_held(batch, chunks, generator, continuation_share, held_chunks, inpainting_share)
    return torch.where(held_BM, torch.zeros_like(angle_BM), angle_BM)


def draw_held(
    batch: int,
    chunks: int,
    generator: torch.Generator,
    continuation_share: float,
    held_chunks: Sequence[int],
    inpainting_share: float,
) -> Tensor:
    """Which chunks are clean from the start, as in a continuation or round a hole.

    Args:
        batch: See `draw_angles`.
        chunks: See `draw_angles`.
        generator: See `draw_angles`.
        continuation_share: See `draw_angles`.
        held_chunks: See `draw_angles`.
        inpainting_share: See `draw_angles`.

    Returns:
        Booleans, [B, M]; never all of an item.
    """
    device = generator.device
    kind_B = torch.rand(batch, generator=generator, device=device)
    drawn_B = torch.randint(max(1, len(held_chunks)), (batch,), generator=generator, device=device)
    hole_B = torch.randint(chunks, (batch,), generator=generator, device=device)
    held_B = torch.tensor(list(held_chunks) or [0], device=device)[drawn_B]
    chunk_M = torch.arange(chunks, device=device)
    before_BM = (kind_B < continuation_share)[:, None] & (chunk_M < held_B[:, None])
    filled_B = (kind_B >= continuation_share) & (kind_B < continuation_share + inpainting_share)
    around_BM = filled_B[:, None] & (chunk_M != hole_B[:, None])
    return before_BM | around_BM


def velocity_loss(v_BCTF: Tensor, target_BCTF: Tensor, angle_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the velocity over the frames that are noisy.

    At angle 0 the velocity is the noise, of which the clean latents say nothing: its error is the same whatever the
    network answers, and its gradient only noise.

    Args:
        v_BCTF: Predicted velocity.
        target_BCTF: True velocity.
        angle_BT: Angles of the frames.

    Returns:
        The mean, and the parts `mse` (the same) and `mse_BT` (each frame's).
    """
    mse_BT = (v_BCTF.float() - target_BCTF.float()).square().mean(dim=(1, 3))
    noisy_BT = angle_BT > 0
    mse = torch.where(noisy_BT, mse_BT, torch.zeros_like(mse_BT)).sum() / noisy_BT.sum().clamp(min=1)
    return mse, {"mse": mse, "mse_BT": mse_BT}


def si_snr(estimate_BX: Tensor, target_BX: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio in dB (arXiv 1811.02508, section 2), one an item, in float64.

    Args:
        estimate_BX: Estimates; all but the first axis are one signal.
        target_BX: What they estimate.

    Returns:
        [B].
    """
    estimate, target = (x.double().flatten(1) - x.double().flatten(1).mean(1, keepdim=True)
                        for x in (estimate_BX, target_BX))
    part = (estimate * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    return 10 * torch.log10(part.square().sum(1) / (estimate - part).square().sum(1))
