"""What every sampler is: an object that takes a denoiser from noise to clean latents."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from musiccm.device import sent
from musiccm.diffusion import (
    AnyCondition,
    BoundDenoise,
    ConsistencyFunction,
    NoiseProcess,
    compute_dtype,
    to_eps,
    told_scale,
    with_guidance,
)
from musiccm.errors import MusiccmError
from musiccm.samplers.noise import NoiseFn
from musiccm.texts import number_text

StepCallback = Callable[[int, float, Tensor], None]
"""`callback(step, t, x0_BCTF)`, called once a step."""


def renoise(
    process: NoiseProcess, x0: Tensor, z: Tensor, t: Tensor, t_next: Tensor, share: float, fresh: Tensor | None
) -> Tensor:
    """From the clean estimate of one step to the noisy latents of the next: the one place where noise comes back.

    `alpha_next x0 + sigma_next (sqrt(1 - share^2) eps_pred + share eps_fresh)` with `eps_pred = (z - alpha x0)/sigma`:
    the mixture has unit variance whenever both noises have.

    Args:
        process: the noise process.
        x0: clean estimate at `t`.
        z: the noisy latents that it was computed from.
        t: their timesteps, one a sample or one for all.
        t_next: timesteps to go to.
        share: share of fresh noise in [0, 1].
        fresh: standard normal noise; not needed where `share` is 0.

    Returns:
        Noisy latents at `t_next`, of the shape of `x0`.
    """
    eps = torch.zeros_like(z)
    if share < 1.0:
        dtype = compute_dtype(z)
        predicted = to_eps("sample", x0, z, process.alpha(t, dtype), process.sigma(t, dtype))
        eps = math.sqrt(1.0 - share * share) * predicted
    if share > 0.0:
        assert fresh is not None
        eps = eps + share * fresh
    return process.add_noise(x0, eps, t_next)


def timesteps_for(z_BCTF: Tensor, timesteps: Sequence[float]) -> Tensor:
    """The timesteps of each step for a batch, filled in on its device: nothing is sent there.

    Args:
        z_BCTF: The batch.
        timesteps: All whole, or some of them between whole ones.

    Returns:
        `[S, B]`; int64 where all are whole, else float32.
    """
    dtype = torch.int64 if all(isinstance(t, int) for t in timesteps) else torch.float32
    t_S = torch.cat([torch.full((1,), t, dtype=dtype, device=z_BCTF.device) for t in timesteps])
    return t_S[:, None].expand(-1, len(z_BCTF))


@dataclass(frozen=True)
class Sampler(ABC):
    """A way from pure noise to clean latents, over descending timesteps that the model's owner chooses.

    By itself it makes one network call a step and remembers nothing, so that a piece of any length can be sampled
    crop by crop (`Stepper`); a subclass says how much of the noise is renewed. One that needs more calls or a memory
    overrides `sample` and sets `memoryless` to False.
    """

    name: ClassVar[str]
    students: ClassVar[bool] = False
    """Whether it suits a distilled student's consistency function."""
    teachers: ClassVar[bool] = False
    """Whether it suits a denoiser, which is exact only for the mean."""
    memoryless: ClassVar[bool] = True

    @property
    def spec(self) -> dict[str, Any]:
        """Its name and fields, as `make_sampler` takes them and a file keeps them."""
        return {"name": self.name} | {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        own = [(key, value) for key, value in self.spec.items() if key != "name"]
        texts = [(key, value if isinstance(value, str) else number_text(value, "g")) for key, value in own]
        return ", ".join([self.name, *(f"{key} {text}" for key, text in texts)])

    def share(self, process: NoiseProcess, t_next: float) -> float:
        """Share of fresh noise, in [0, 1], in what is added on the way to `t_next`."""
        return 0.0

    def sample(
        self,
        denoise: BoundDenoise,
        process: NoiseProcess,
        noise_BCTF: Tensor,
        timesteps: Sequence[float],
        noise_fn: NoiseFn | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Sample a batch.

        Args:
            denoise: `(z, t) -> x0`, its condition fixed and guided (`with_guidance`).
            process: The noise process that it was trained with.
            noise_BCTF: Initial noise, drawn from N(0, I); its device and shape are the result's.
            timesteps: Strictly descending; whole, or between whole ones (`student_grid`).
            noise_fn: Fresh noise of step 0, 1, ...; needed if any is drawn.
            callback: Called with `(step, t, x0)` after each network call.

        Returns:
            The last x0, `[B, C, T, F]`, float32 or better.

        Raises:
            MusiccmError: Fresh noise is drawn, and there is no source of it.
        """
        dtype = compute_dtype(noise_BCTF)
        z = noise_BCTF.to(dtype)
        # All that comes from the host is sent before the first network call: from then on a GPU is never waited for.
        t_SB = timesteps_for(z, timesteps)
        shares = [self.share(process, t_next) for t_next in timesteps[1:]]
        drawn = [sent(self._fresh(noise_fn, step), z.device).to(z) if share > 0.0 else None
                 for step, share in enumerate(shares)]
        x0 = z
        for step, t_B in enumerate(t_SB):
            x0 = denoise(z, t_B).to(dtype)
            if callback is not None:
                callback(step, timesteps[step], x0)
            if step + 1 < len(timesteps):
                z = renoise(process, x0, z, t_B, t_SB[step + 1], shares[step], drawn[step])
        return x0

    def _fresh(self, noise_fn: NoiseFn | None, step: int) -> Tensor:
        if noise_fn is None:
            raise MusiccmError(f"sampling noise: the sampler {self.name} draws fresh noise; expected a noise_fn, "
                               "found none")
        return noise_fn(step)


def check_gamma(gamma: float) -> None:
    """Refuse a share that is none.

    Raises:
        MusiccmError: `gamma` is not in [0, 1].
    """
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0.0 <= gamma <= 1.0:
        raise MusiccmError(f"gamma: expected a number in [0, 1], found {gamma!r}.")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance by two calls, of a teacher or of a student that was distilled without.

    Args:
        null: `(B) -> null conditions`, a batch of B or 1.
        scale: The usual scale; 1 is no guidance.
    """

    null: Callable[[int], AnyCondition]
    scale: float


@dataclass(frozen=True)
class Stepper:
    """A sampler at work: which network, at which noise levels, by which rule, under which guidance.

    Args:
        network: `(z, t, cond) -> x0`: a consistency function, or a teacher.
        process: The noise process that it was trained with.
        timesteps: Strictly descending; `student_stepper` and `teacher_stepper` choose them.
        sampler: The rule.
        guidance: By two calls; None for none.
        told: The guidance scale that the network is told, of one with a guidance branch; None for others.
    """

    network: ConsistencyFunction
    process: NoiseProcess
    timesteps: Sequence[float]
    sampler: Sampler
    guidance: Guidance | None = None
    told: float | None = None

    @property
    def scale(self) -> float | None:
        """The guidance scale that can be chosen, by whichever way it is applied; None where there is none."""
        return self.told if self.guidance is None else self.guidance.scale

    def f(self, z: Tensor, t: Tensor, cond_BD: AnyCondition) -> Tensor:
        """One guided estimate of x0: one network call, of (condition, null) pairs where it is guided."""
        return self._bound(cond_BD)(z, t)

    def _bound(self, cond_BD: AnyCondition) -> BoundDenoise:
        if self.told is not None:
            cond_BD = told_scale(cond_BD, self.told)
        if self.guidance is None or self.guidance.scale == 1.0:
            return with_guidance(self.network, cond_BD)
        return with_guidance(self.network, cond_BD, self.guidance.null(len(cond_BD)), self.guidance.scale)

    @torch.no_grad()
    def sample(
        self,
        cond_BD: AnyCondition,
        noise_BCTF: Tensor,
        noise_fn: NoiseFn | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Sample a batch of clips; see `Sampler.sample`."""
        return self.sampler.sample(
            self._bound(cond_BD), self.process, noise_BCTF, self.timesteps, noise_fn, callback)

    def needs_no_memory(self) -> Stepper:
        """Itself, for those that take steps one by one.

        Raises:
            MusiccmError: Its sampler makes several calls a step, or looks back at earlier steps.
        """
        if not self.sampler.memoryless:
            raise MusiccmError(f"sampler: {self.sampler.name} makes several network calls a step or looks back at "
                               "earlier ones, and music of other lengths and edits are made crop by crop; choose ddim "
                               "for a teacher")
        return self

    def draws(self, step: int) -> bool:
        """Whether fresh noise is added after a step."""
        return self._share(step) > 0.0

    def _share(self, step: int) -> float:
        return self.sampler.share(self.process, self.timesteps[step + 1])

    def renoise(self, step: int, x0: Tensor, z: Tensor, fresh: Tensor) -> Tensor:
        """From the clean estimate after one step to the noisy latents of the next.

        Args:
            step: The step that gave `x0`.
            x0: Fused clean estimate; any shape.
            z: The noisy latents that it was computed from.
            fresh: Standard normal noise.

        Returns:
            Noisy latents at the next timestep (`renoise`).
        """
        # filled on the device, and not one number but a list of one: nothing is sent there or asked back
        t, t_next = (torch.full((1,), self.timesteps[i], device=z.device) for i in (step, step + 1))
        return renoise(self.process, x0, z, t, t_next, self._share(step), fresh.to(z))
