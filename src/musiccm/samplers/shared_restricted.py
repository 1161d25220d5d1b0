"""Music longer than the training window: one noisy piece, denoised crop by crop (MusicCM, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from musiccm.device import sent
from musiccm.diffusion import AnyCondition, stack_conditions
from musiccm.errors import MusiccmError
from musiccm.samplers.base import Stepper
from musiccm.samplers.crops import Crops, fusion_profile
from musiccm.samplers.noise import INITIAL, FrameNoise, SectionNoise

CondOf: TypeAlias = Callable[[int], AnyCondition]
"""`cond_of(crop) -> cond_D`, asked once a crop, in order, just before its first network call."""


@dataclass(frozen=True)
class SharedProcess:
    """One piece: its sampler, its noise, its crops and how they are fused.

    Args:
        stepper: The sampler.
        crops: Windows of the piece, in latent frames.
        noise: Its noise by position.
        fusion: One of `FUSIONS`.
        device: Where the network is.

    Raises:
        MusiccmError: The fusion is unknown, or the sampler cannot work crop by crop.
    """

    stepper: Stepper
    crops: Crops
    noise: FrameNoise | SectionNoise
    fusion: str
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.stepper.needs_no_memory()
        _ = self._profile_W  # an unknown fusion is said now

    @cached_property
    def _profile_W(self) -> Tensor | None:
        return fusion_profile(self.fusion, self.crops.window)

    def share(self, crop: int, step: int) -> Tensor:
        """The part of each of its frames that a crop contributes, shape [window, 1] on the device."""
        return sent(self.crops.share(crop, self._profile_W, step)[:, None], torch.device(self.device))

    def shares(self, crops: Sequence[int], steps: int) -> Tensor:
        """`share` of several crops at every step, [steps, crops, window, 1], sent to the device as one."""
        once = self._profile_W is not None  # only `swap` changes from step to step
        found = [torch.stack([self.crops.share(i, self._profile_W, step) for i in crops])
                 for step in range(1 if once else steps)]
        return sent(torch.stack(found)[..., None], torch.device(self.device)).expand(steps, -1, -1, -1)

    def fresh(self, step: int, first: int, last: int) -> Tensor:
        """Noise of some frames on the device, [C, frames, F]."""
        return sent(self.noise(step, first, last), torch.device(self.device))


def needed_crops(crops: Crops, kept_T: Tensor) -> list[int]:
    """The crops that hold a frame which is not kept; the others need no network."""
    assert crops.count is not None
    starts = [(i, crops.start(i)) for i in range(crops.count)]
    return [i for i, start in starts if not bool(kept_T[start : start + crops.window].all())]


@torch.no_grad()
def sample_shared(
    process: SharedProcess,
    cond_of: CondOf,
    batch_size: int = 8,
    *,
    initial_CTF: Tensor | None = None,
    kept_CTF: Tensor | None = None,
    kept_T: Tensor | None = None,
) -> Tensor:
    """Sample a whole piece by the shared restricted process (MusicCM, arXiv 2404.13358, algorithm 1 and equation 10).

    At each step the crops of the one noisy piece are denoised in batches and their x0 fused; then noise is added to
    the fused piece once. (Fusing crops that were each re-noised would shrink the noise by 1/sqrt(n) where n of them
    overlap.) A piece of one crop is plain sampling.

    Args:
        process: The piece; its crops must have an end.
        cond_of: Condition of each crop.
        batch_size: Crops a network call.
        initial_CTF: Noisy latents at the first timestep, to start from those in place of pure noise.
        kept_CTF: Clean latents that the piece must contain where `kept_T` says so; they take the place of x0 there
            after every step, the last included (RePaint, arXiv 2201.09865, without its repetitions).
        kept_T: Frames to keep, boolean.

    Returns:
        Clean latents `[C, T, F]` of the piece.

    Raises:
        MusiccmError: The piece has no end.
    """
    crops, stepper = process.crops, process.stepper
    if crops.length is None or crops.count is None:
        raise MusiccmError("a piece without end cannot be sampled whole; stream it")
    window = crops.window
    z = process.fresh(INITIAL, 0, crops.length) if initial_CTF is None else initial_CTF
    needed = list(range(crops.count)) if kept_T is None else needed_crops(crops, kept_T)
    starts = [crops.start(i) for i in needed]
    cond_ND = stack_conditions([cond_of(i) for i in needed]) if needed else torch.empty(0)
    # All that comes from the host is sent before the first network call: from then on a GPU is never waited for.
    share_SNW1 = process.shares(needed, len(stepper.timesteps)) if needed else torch.empty(len(stepper.timesteps), 0)
    zeros, between = torch.zeros_like(z), range(len(stepper.timesteps) - 1)
    drawn = [process.fresh(step, 0, crops.length) if stepper.draws(step) else zeros for step in between]
    if kept_CTF is not None and kept_T is not None:
        kept_CTF, kept_T1 = kept_CTF.to(z), kept_T[:, None].to(z.device)
    x0 = z
    for step, t in enumerate(stepper.timesteps):
        x0 = torch.zeros_like(z)
        for begin in range(0, len(needed), batch_size):
            part = slice(begin, begin + batch_size)
            z_BCTF = torch.stack([z[:, start : start + window] for start in starts[part]])
            t_B = torch.full((len(z_BCTF),), t, device=z.device)  # long or float, as t is
            estimates = stepper.f(z_BCTF, t_B, cond_ND[part])
            for start, share_W1, estimate in zip(starts[part], share_SNW1[step][part], estimates, strict=True):
                x0[:, start : start + window] += share_W1 * estimate
        if kept_CTF is not None and kept_T is not None:
            x0 = torch.where(kept_T1, kept_CTF, x0)
        if step + 1 < len(stepper.timesteps):
            z = stepper.renoise(step, x0, z, drawn[step])
    return x0
