"""The samplers by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from musiccm.bounds import SCHEDULES
from musiccm.diffusion import BoundDenoise, NoiseProcess, compute_dtype, heun_jump
from musiccm.errors import MusiccmError
from musiccm.samplers.base import Sampler, StepCallback, check_gamma, timesteps_for
from musiccm.samplers.noise import NoiseFn


@dataclass(frozen=True)
class TeacherRule(Sampler):
    """A sampler of teachers, whose noise levels can be chosen.

    Args:
        schedule: One of `SCHEDULES`.

    Raises:
        MusiccmError: There is no such schedule.
    """

    teachers = True
    schedule: str = SCHEDULES[0]

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise MusiccmError(f"schedule: expected one of {', '.join(SCHEDULES)}, found {self.schedule!r}")

    @property
    def spec(self) -> dict[str, Any]:
        """See `Sampler.spec`; the usual schedule is left out, as it was before there were others."""
        return {key: value for key, value in super().spec.items() if (key, value) != ("schedule", SCHEDULES[0])}


@dataclass(frozen=True)
class Ddim(TeacherRule):
    """Deterministic DDIM (arXiv 2010.02502, equation 12, eta = 0), the first-order solver of the flow's ODE.

    Over the angle process its steps are MeLoDy's rotations (`rotate`).
    """

    name = "ddim"
    students = True


@dataclass(frozen=True)
class Lcm(Sampler):
    """Multistep consistency sampling (LCM, arXiv 2310.04378, algorithm 3), with adjustable stochasticity.

    Args:
        gamma: Share of fresh noise between steps: 1 is LCM's sampler exactly, 0 is DDIM.

    Raises:
        MusiccmError: `gamma` is not in [0, 1].
    """

    name = "lcm"
    students = True
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    def share(self, process: NoiseProcess, t_next: float) -> float:
        """`gamma` at every step."""
        return self.gamma


@dataclass(frozen=True)
class Tcd(Sampler):
    """Strategic stochastic sampling (TCD, arXiv 2402.19159, algorithm 4).

    Each step goes deterministically down to `s = floor((1 - gamma) t_next)` and is noised up again to `t_next`, which
    is the mixture of `renoise` with a share that depends on the noise level:
    `1 - share^2 = (alpha_next sigma_s / (alpha_s sigma_next))^2`. Where t_next is no whole timestep, s need not be.

    Args:
        gamma: 0 is deterministic, 1 goes down to the lowest noise level between steps.

    Raises:
        MusiccmError: `gamma` is not in [0, 1].
    """

    name = "tcd"
    students = True
    gamma: float = 0.3

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    def share(self, process: NoiseProcess, t_next: float) -> float:
        """The share of fresh noise on the way to `t_next`."""
        low = (1.0 - self.gamma) * t_next
        if float(t_next).is_integer():
            low = math.floor(low)
        if low == t_next:
            return 0.0
        (alpha_s, alpha), (sigma_s, sigma) = _levels(process, [low, t_next])
        return math.sqrt(max(0.0, 1.0 - (alpha * sigma_s / (alpha_s * sigma)) ** 2))


@dataclass(frozen=True)
class Heun(TeacherRule):
    """Heun's second-order solver of the probability-flow ODE (EDM, arXiv 2206.00364, algorithm 1): two calls a step.

    The last step is a single call, as it lands on clean.
    """

    name = "heun"
    memoryless = False

    def sample(
        self,
        denoise: BoundDenoise,
        process: NoiseProcess,
        noise_BCTF: Tensor,
        timesteps: Sequence[float],
        noise_fn: NoiseFn | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """See `Sampler.sample`; `callback` gets the x0 of the step's first call."""
        z = noise_BCTF.to(compute_dtype(noise_BCTF))
        t_SB = timesteps_for(z, timesteps)
        for step in range(len(timesteps) - 1):
            seen: list[Tensor] = []

            def watched(z: Tensor, t: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(denoise(z, t))
                return seen[-1]

            z = heun_jump(watched, process, z, t_SB[step], t_SB[step + 1])
            if callback is not None:
                callback(step, timesteps[step], seen[0])
        x0 = denoise(z, t_SB[-1]).to(z.dtype)
        if callback is not None:
            callback(len(timesteps) - 1, timesteps[-1], x0)
        return x0


@dataclass(frozen=True)
class DpmSolver(TeacherRule):
    """DPM-Solver++(2M), second order with one call a step (arXiv 2211.01095, algorithm 2).

    With `lambda = log(alpha / sigma)` and `h = lambda_next - lambda`, a step is
    `z_next = (sigma_next / sigma) z - alpha_next (exp(-h) - 1) D`, where `D = x0 + h / (2 h_before) (x0 - x0_before)`
    extrapolates from the step before; the first step, and the last one, which lands on clean, take `D = x0`.
    """

    name = "dpm-solver++"
    memoryless = False

    def sample(
        self,
        denoise: BoundDenoise,
        process: NoiseProcess,
        noise_BCTF: Tensor,
        timesteps: Sequence[float],
        noise_fn: NoiseFn | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """See `Sampler.sample`."""
        z = noise_BCTF.to(compute_dtype(noise_BCTF))
        t_SB = timesteps_for(z, timesteps)
        alphas, sigmas = _levels(process, timesteps)
        logs = [math.log(a / s) if a > 0 else -math.inf for a, s in zip(alphas, sigmas, strict=True)]
        before: Tensor | None = None
        x0 = z
        for step, t_B in enumerate(t_SB):
            x0 = denoise(z, t_B).to(z.dtype)
            if callback is not None:
                callback(step, timesteps[step], x0)
            if step + 1 == len(timesteps):
                break
            data = x0
            if before is not None:  # out of pure noise the step before was infinitely long: nothing to extrapolate
                ratio = (logs[step + 1] - logs[step]) / (logs[step] - logs[step - 1])
                data = x0 + 0.5 * ratio * (x0 - before)
            shrink = sigmas[step + 1] / sigmas[step]
            # alpha_next (1 - exp(-h)), multiplied out so that an alpha of 0 does no harm
            z = shrink * z + (alphas[step + 1] - alphas[step] * shrink) * data
            before = x0
        return x0


SAMPLERS: dict[str, type[Sampler]] = {kind.name: kind for kind in (Ddim, Lcm, Tcd, Heun, DpmSolver)}

SamplerSpec: TypeAlias = "str | Mapping[str, Any] | Sampler"
"""A sampler, its name, or its name and fields: `{"name": "lcm", "gamma": 0.6}`."""


def make_sampler(spec: SamplerSpec, gamma: float | None = None, schedule: str | None = None) -> Sampler:
    """The sampler that a configuration names.

    Args:
        spec: A sampler, its name, or a mapping of `name` and its fields.
        gamma: Takes the place of the sampler's own `gamma`, if given.
        schedule: Takes the place of its own `schedule`, if given.

    Returns:
        The sampler.

    Raises:
        MusiccmError: An unknown name or field, a bad value, or a gamma or schedule for a sampler that has none.

    Examples:
        >>> make_sampler({"name": "lcm", "gamma": 0.6})
        Lcm(gamma=0.6)
        >>> make_sampler("tcd", gamma=0.3)
        Tcd(gamma=0.3)
        >>> make_sampler("ddpm")
        Traceback (most recent call last):
        musiccm.errors.MusiccmError: sampler: expected one of ddim, lcm, tcd, heun, dpm-solver++, found 'ddpm'
    """
    if not isinstance(spec, Sampler):
        options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in SAMPLERS:
            raise MusiccmError(f"sampler: expected one of {', '.join(SAMPLERS)}, found {name!r}")
        known = [field.name for field in fields(SAMPLERS[name])]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise MusiccmError(f"sampler.{unknown[0]}: the sampler {name} has no such field; "
                               f"{'it has ' + ', '.join(known) if known else 'it has none'}")
        spec = SAMPLERS[name](**options)
    chosen = {"gamma": None if gamma is None else float(gamma), "schedule": schedule}
    own = {key: value for key, value in chosen.items() if value is not None}
    for key in own:
        if not hasattr(spec, key):
            raise MusiccmError(f"{key}: the sampler {spec.name} has none; {_with(key)} have")
    return replace(spec, **own) if own else spec


def _with(key: str) -> str:
    *names, last = (name for name, kind in SAMPLERS.items() if any(f.name == key for f in fields(kind)))
    return f"{', '.join(names)} and {last}"


def _levels(process: NoiseProcess, timesteps: Sequence[float]) -> tuple[list[float], list[float]]:
    """Alpha and sigma of some timesteps, computed on the host in float64."""
    t = torch.tensor(list(timesteps))
    return process.alpha(t, torch.float64).tolist(), process.sigma(t, torch.float64).tolist()

