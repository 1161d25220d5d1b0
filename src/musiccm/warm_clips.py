"""Clips of shapes that were warmed up: from tokens to waveform as one recorded call, on a GPU one CUDA graph.

Text encoder, sampler and decoder are recorded together. Random draws stay outside: each clip's noise is drawn by its
seed on the CPU, as ever, and copied in. Prompts are padded to a few lengths (`Conditioner.padded`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.acceleration.static_call import StaticCall, recorder
from musiccm.models.conditioners.prompt_memory import Conditioner
from musiccm.samplers import INITIAL, Evaluations, Guidance, Sampler, Stepper, sample_noise

log = logging.getLogger(__name__)

MOST = 16
"""Recorded calls of a model at most: on a GPU each keeps its inputs, its sound and its graph."""


@dataclass(frozen=True)
class _Rule:
    """How a clip is sampled, of which a recorded call knows one way."""

    timesteps: tuple[float, ...]
    sampler: Sampler
    scale: float | None

    @classmethod
    def of(cls, stepper: Stepper) -> _Rule:
        return cls(tuple(stepper.timesteps), stepper.sampler, stepper.scale)


@dataclass(frozen=True)
class _Recorded:
    """A recorded call.

    Args:
        rows: Clips that it makes.
        length: Tokens of a prompt, padding among them.
        steps: After which step fresh noise is added, behind the initial noise.
        evaluations: Of the network, for each clip.
        call: `(ids_BL, mask_BL, noise_SBCTF) -> waveform_BS`.
    """

    rows: int
    length: int
    steps: list[int]
    evaluations: int
    call: StaticCall


class WarmClips:
    """The recorded calls of one model, found by what is asked for.

    Args:
        conditioner: Reads the prompts.
        decode: From latents to waveforms, `[B, S]`.
        shape_CTF: Of the latents of a clip.
        device: Where the networks are.
    """

    def __init__(
        self, conditioner: Conditioner, decode: Callable[[Tensor], Tensor], shape_CTF: Sequence[int],
        device: torch.device,
    ) -> None:
        self.conditioner, self.decode, self.shape_CTF, self.device = conditioner, decode, shape_CTF, device
        self._recorded: dict[_Rule, list[_Recorded]] = {}
        self._record = recorder(device)
        self._busy = threading.Lock()  # recorded calls share their memory
        self._told = False

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._recorded.values())

    def add(self, stepper: Stepper, rows: int, texts: Sequence[str] = ("",)) -> None:
        """Record the call that makes so many clips, unless there is one that does.

        Args:
            stepper: The sampler at work, whose networks stay as they are from now on.
            rows: Clips at once.
            texts: The longest is as long, up to the next of `PROMPT_LENGTHS`, as prompts will be.

        Raises:
            MusiccmError: There are `MOST` recorded calls.
        """
        ids_BL, mask_BL = self.conditioner.padded(*self.conditioner.tokenized(list(texts)))
        with self._busy:
            if self._find(stepper, rows, ids_BL.shape[1], exactly=True) is not None:
                return
            if len(self) >= MOST:
                raise MusiccmError(f"warm_up: expected at most {MOST} shapes of clips, found one more; leave out some, "
                                   "a batch serves smaller ones too")
            new = self._recorded_call(stepper, ids_BL[:1].expand(rows, -1), mask_BL[:1].expand(rows, -1))
            self._recorded.setdefault(_Rule.of(stepper), []).append(new)

    def make(self, stepper: Stepper, texts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, int] | None:
        """Make clips by a recorded call.

        Args:
            stepper: The sampler at work.
            texts: Prompts.
            seeds: One a prompt.

        Returns:
            Waveforms [B, S] on the CPU, float32, and evaluations of the network; None where no call was recorded that
            holds them, which is logged once.

        Raises:
            MusiccmError: A text is longer than the model reads.
        """
        self.conditioner.require_whole(list(texts))
        ids_BL, mask_BL = self.conditioner.tokenized(list(texts))
        found = self._find(stepper, len(texts), ids_BL.shape[1])
        if found is None:
            self._say(len(texts), ids_BL.shape[1], stepper)
            return None
        ids_BL, mask_BL = self.conditioner.padded(ids_BL, mask_BL, found.length)
        noise_SBCTF = torch.stack([sample_noise(seeds, self.shape_CTF, step) for step in found.steps])
        rows = [min(row, len(texts) - 1) for row in range(found.rows)]  # what is missing is the last one again
        with self._busy:
            sound_BS = found.call(ids_BL[rows], mask_BL[rows], noise_SBCTF[:, rows]).cpu()
        return sound_BS[: len(texts)], found.evaluations * len(texts)

    def _find(self, stepper: Stepper, rows: int, length: int, exactly: bool = False) -> _Recorded | None:
        """The smallest call that holds so many clips and tokens."""
        fitting = [one for one in self._recorded.get(_Rule.of(stepper), [])
                   if ((one.rows, one.length) == (rows, length) if exactly else one.rows >= rows
                       and one.length >= length)]
        return min(fitting, key=lambda one: (one.rows, one.length), default=None)

    def _recorded_call(self, stepper: Stepper, ids_BL: Tensor, mask_BL: Tensor) -> _Recorded:
        spent, rows = Evaluations(), len(ids_BL)
        stepper = spent.counting(_holding_null(stepper))
        steps = [INITIAL, *(step for step in range(len(stepper.timesteps) - 1) if stepper.draws(step))]

        made = 0

        def clips(ids_BL: Tensor, mask_BL: Tensor, noise_SBCTF: Tensor) -> Tensor:
            nonlocal made
            made += rows
            cond = self.conditioner.encode(ids_BL, mask_BL)
            z_BCTF = stepper.sample(cond, noise_SBCTF[0], lambda step: noise_SBCTF[steps.index(step)])
            return self.decode(z_BCTF).float()

        noise_SBCTF = torch.stack([sample_noise(range(rows), self.shape_CTF, step) for step in steps])
        example = [part.to(self.device) for part in (ids_BL, mask_BL, noise_SBCTF)]
        call = StaticCall(clips, example, self._record)
        return _Recorded(rows, ids_BL.shape[1], steps, spent.denoising // made, call)

    def _say(self, rows: int, length: int, stepper: Stepper) -> None:
        if self._told:
            return
        self._told = True
        known = "; ".join(f"{len(rule.timesteps)} steps of {rule.sampler}: {one.rows} clips, {one.length} tokens"
                          for rule, calls in self._recorded.items() for one in calls)
        log.warning("%d clips of %d tokens at %d steps of %s were not warmed up, and are made more slowly, as are all "
                    "others that do not fit; warmed up are %s", rows, length, len(stepper.timesteps), stepper.sampler,
                    known)


def _holding_null(stepper: Stepper) -> Stepper:
    """The same with the null condition at hand: a recorded call may not read from a memory that forgets."""
    if stepper.guidance is None:
        return stepper
    null: Any = stepper.guidance.null(1)
    return replace(stepper, guidance=Guidance(lambda count: null, stepper.guidance.scale))
