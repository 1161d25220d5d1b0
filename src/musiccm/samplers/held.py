"""Frames that are clean and stay so while the others are sampled (MeLoDy, arXiv 2305.15719, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.samplers.base import Stepper
from musiccm.samplers.noise import NoiseFn


@dataclass(frozen=True)
class HeldFrames:
    """Frames that a network sees clean, and is told so.

    Args:
        clean_BCTF: Clean latents; what is not held of them is not looked at.
        held_BT: Which frames are held, boolean; of one row, those of all items.
    """

    clean_BCTF: Tensor
    held_BT: Tensor

    def of(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A network `(z, t, cond) -> x0` of latents whose held frames are put right before and after the call.

        Args:
            network: One that takes `held_BT`, such as a `FrameDenoiser`, or a `Consistency` of one.
        """

        def held(z_BCTF: Tensor, t_B: Tensor, cond: Any) -> Tensor:
            rows = len(z_BCTF)  # a guided call has the batch twice
            clean = self.clean_BCTF.repeat(rows // len(self.clean_BCTF), 1, 1, 1).to(z_BCTF.dtype)
            held_BT = self.held_BT.repeat(rows // len(self.held_BT), 1)
            held_BCTF = held_BT[:, None, :, None]
            x0 = network(torch.where(held_BCTF, clean, z_BCTF), t_B, cond, held_BT=held_BT)
            return torch.where(held_BCTF, clean.to(x0.dtype), x0)

        return held


def holding(stepper: Stepper, clean_BCTF: Tensor, held_T: Tensor) -> Stepper:
    """A sampler that leaves some frames alone.

    The network sees them clean, and is told so (`held_BT`); whatever the sampler's rule makes of them between two calls
    is put right before the next one. Any sampler of any order can so be used.

    Args:
        stepper: The sampler at work, of a network that takes `held_BT` (`FrameDenoiser`).
        clean_BCTF: Clean latents; what is not held of them is not looked at.
        held_T: The frames to hold, boolean.

    Returns:
        The stepper for latents of this shape.

    Raises:
        MusiccmError: The mask is not one of the latents' frames, or holds all of them.
    """
    frames = clean_BCTF.shape[2]
    if held_T.dtype != torch.bool or held_T.shape != (frames,):
        raise MusiccmError(f"held frames: expected a boolean mask of {frames} frames, found {held_T.dtype} of shape "
                           f"{list(held_T.shape)}")
    if bool(held_T.all()):
        raise MusiccmError(f"held frames: all {frames} are held, and there is nothing to make; free some")
    held = HeldFrames(clean_BCTF, held_T[None].to(clean_BCTF.device))
    return replace(stepper, network=held.of(stepper.network))


def fill(
    stepper: Stepper, cond: Any, clean_BCTF: Tensor, held_T: Tensor, noise_BCTF: Tensor,
    noise_fn: NoiseFn | None = None,
) -> Tensor:
    """Sample the frames of a window that are not held: a continuation, or a hole.

    Args:
        stepper: See `holding`.
        cond: Condition of the whole window.
        clean_BCTF: See `holding`.
        held_T: See `holding`; none may be held.
        noise_BCTF: Standard normal noise of the whole window.
        noise_fn: See `Sampler.sample`.

    Returns:
        The window: held frames bit by bit as they were, in their own type, the others new.
    """
    if not bool(held_T.any()):
        return stepper.sample(cond, noise_BCTF, noise_fn).to(clean_BCTF.dtype)
    made = holding(stepper, clean_BCTF, held_T).sample(cond, noise_BCTF, noise_fn)
    return torch.where(held_T[:, None].to(made.device), clean_BCTF.to(made.device), made.to(clean_BCTF.dtype))
