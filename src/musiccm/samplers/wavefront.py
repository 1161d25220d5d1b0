"""The shared restricted process in constant memory: every noise level at once, each a little behind the one before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.device import sent
from musiccm.diffusion import AnyCondition, stack_conditions
from musiccm.samplers.noise import INITIAL
from musiccm.samplers.shared_restricted import CondOf, SharedProcess


@dataclass
class _Lane:
    """One noise level: its noisy latents and the x0 fused so far, both from frame `first` of the piece on."""

    z_CTF: Tensor
    x0_CTF: Tensor
    first: int = 0
    done: int = 0  # crops that were denoised

    @property
    def last(self) -> int:
        return self.first + self.z_CTF.shape[1]

    def extend(self, z_CTF: Tensor) -> None:
        self.z_CTF = torch.cat([self.z_CTF, z_CTF], dim=1)
        self.x0_CTF = torch.cat([self.x0_CTF, torch.zeros_like(z_CTF)], dim=1)

    def take(self, upto: int) -> tuple[Tensor, Tensor]:
        """Remove the frames before `upto`: their z and their x0."""
        count = upto - self.first
        z, x0 = self.z_CTF[:, :count], self.x0_CTF[:, :count]
        self.z_CTF, self.x0_CTF, self.first = self.z_CTF[:, count:].clone(), self.x0_CTF[:, count:].clone(), upto
        return z, x0


class Wavefront:
    """Computes what `sample_shared` computes, from front to back.

    A crop at one step needs the noisy latents of its window, and these need all crops of the step before that overlap
    it, and no others. So each step can follow closely behind the one before: a tick runs the next crop of every step
    that is ready, as one batch of mixed timesteps. With half-overlapping crops and T steps the first frames are done
    after `2 (T - 1) + 1` ticks, then a hop's worth every tick; about `2 T` windows are held at any time.

    Args:
        process: The piece, with an end or without.
        cond_of: Condition of each crop, asked when the crop begins; what it answers may change as the music plays.
    """

    def __init__(self, process: SharedProcess, cond_of: CondOf) -> None:
        self.process = process
        self.cond_of = cond_of
        channels, _, bins = process.noise.shape_CTF
        empty = torch.zeros(channels, 0, bins, device=process.device)
        self._lanes = [_Lane(empty, empty) for _ in process.stepper.timesteps]
        self._cond: dict[int, AnyCondition] = {}  # of the crops that have begun and are not finished

    @property
    def begun(self) -> int:
        """Number of crops that have begun: the next one is the first that another condition can reach."""
        return self._lanes[0].done

    @property
    def finished(self) -> bool:
        """Whether the whole piece has been handed out."""
        return not self.process.crops.exists(self._lanes[-1].done)

    @torch.no_grad()
    def tick(self) -> Tensor:
        """One batched network call.

        Returns:
            The clean latents that it finished, `[C, frames, F]`, directly behind those of the tick before; often none
            in the first ticks.
        """
        process, crops, stepper = self.process, self.process.crops, self.process.stepper
        self._begin_next()
        ready = [step for step, lane in enumerate(self._lanes)
                 if crops.exists(lane.done) and lane.last >= crops.start(lane.done) + crops.window]
        if not ready:
            return self._lanes[-1].x0_CTF[:, :0]
        z, cond = [], []
        for step in ready:
            lane = self._lanes[step]
            offset = crops.start(lane.done) - lane.first
            z.append(lane.z_CTF[:, offset : offset + crops.window])
            cond.append(self._cond[lane.done])
        t_B = sent(torch.tensor([stepper.timesteps[step] for step in ready]), torch.device(process.device))
        estimates = stepper.f(torch.stack(z), t_B, stack_conditions(cond))
        for step, estimate in zip(ready, estimates, strict=True):
            lane = self._lanes[step]
            offset = crops.start(lane.done) - lane.first
            lane.x0_CTF[:, offset : offset + crops.window] += process.share(lane.done, step) * estimate
            lane.done += 1
        return self._hand_on(ready)

    def _begin_next(self) -> None:
        """Give the first step the noise and the condition of its next crop."""
        crops, lane = self.process.crops, self._lanes[0]
        if crops.exists(lane.done):
            needed = crops.start(lane.done) + crops.window
            if needed > lane.last:
                lane.extend(self.process.fresh(INITIAL, lane.last, needed))
            self._cond[lane.done] = self.cond_of(lane.done)

    def _hand_on(self, ready: list[int]) -> Tensor:
        """Move the frames that are settled at each step to the next one, which uses them from the next tick on."""
        output = self._lanes[-1].x0_CTF[:, :0]
        for step in ready:
            lane = self._lanes[step]
            settled, first = self.process.crops.settled(lane.done), lane.first
            z, x0 = lane.take(settled)
            if step + 1 == len(self._lanes):
                output = x0
                del self._cond[lane.done - 1]
            elif settled > first:
                fresh = self.process.fresh(step, first, settled)
                self._lanes[step + 1].extend(self.process.stepper.renoise(step, x0, z, fresh))
        return output
