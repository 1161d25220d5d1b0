"""From a network to a sampler at work: which timesteps a student or a teacher is sampled at, and what suits it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from musiccm.bounds import SCHEDULES, check_teacher_steps
from musiccm.diffusion import (
    AnyCondition,
    ConsistencyFunction,
    Denoise,
    NoiseProcess,
    StudentGuidance,
    angle_timesteps,
    sampling_timesteps,
)
from musiccm.errors import MusiccmError
from musiccm.samplers.base import Guidance, Sampler, Stepper
from musiccm.samplers.rules import SAMPLERS, SamplerSpec, TeacherRule, make_sampler

STUDENT_SAMPLER, TEACHER_SAMPLER = "lcm", "ddim"
FIXED = StudentGuidance()


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
    check_teacher_steps(steps, num_train_timesteps)
    return [round((steps - i) * num_train_timesteps / steps) - 1 for i in range(steps)]


def teacher_timesteps(steps: int, process: NoiseProcess, sampler: Sampler) -> list[float]:
    """The noise levels at which a teacher is called.

    Args:
        steps: Number of steps.
        process: The noise process that it was trained with.
        sampler: The rule, whose `schedule` says how they lie.

    Returns:
        Descending timesteps.

    Raises:
        MusiccmError: More steps than the noise levels allow.
    """
    trailing: list[float] = list(trailing_timesteps(steps, process.num_train_timesteps))
    schedule = sampler.schedule if isinstance(sampler, TeacherRule) else SCHEDULES[0]
    return trailing if schedule == SCHEDULES[0] else angle_timesteps(process, steps, schedule.removeprefix("angle_"))


def student_stepper(
    f: ConsistencyFunction,
    process: NoiseProcess,
    grid: Tensor,
    steps: int,
    sampler: SamplerSpec = STUDENT_SAMPLER,
    guidance_scale: float | None = None,
    strength: float = 1.0,
    *,
    guidance: StudentGuidance = FIXED,
    null: Callable[[int], AnyCondition] | None = None,
) -> Stepper:
    """A distilled student at work, at timesteps of the grid that it was trained on.

    Args:
        f: The consistency function.
        process: The noise process that it was trained with.
        grid: Its training grid, ascending.
        steps: Sampling steps, each one network call; two of a student that is guided directly.
        sampler: See `make_sampler`.
        guidance_scale: The usual scale, of a student that takes one; the student's own by default.
        strength: Part of the noise levels that is gone through, from the cleanest up; below 1 to vary a clip.
        guidance: How the student is guided.
        null: `(B) -> null conditions`, needed by a student that is guided directly.

    Returns:
        The stepper.

    Raises:
        MusiccmError: Guidance that the student does not take, more steps than the grid has, a strength out of range, or
            a sampler that does not suit a student.
    """
    rule = suited_sampler(sampler, student=True)
    scale = guidance.chosen(guidance_scale)
    sampling_timesteps(steps, grid)  # refuses what is off the whole grid
    levels = grid[: max(1, round(_checked_strength(strength) * len(grid)))]
    timesteps = sampling_timesteps(min(steps, len(levels)), levels).tolist()
    if scale is not None and guidance.kind == "direct":
        if null is None:
            raise MusiccmError("guidance: a student that is guided directly needs the null condition; expected null")
        return Stepper(f, process, timesteps, rule, Guidance(null, scale))
    return Stepper(f, process, timesteps, rule, told=scale)


def teacher_stepper(
    denoise: Denoise,
    process: NoiseProcess,
    null: Callable[[int], AnyCondition],
    steps: int,
    guidance_scale: float,
    sampler: SamplerSpec = TEACHER_SAMPLER,
    strength: float = 1.0,
) -> Stepper:
    """A guided teacher at work, at the noise levels of its sampler's schedule; the last step lands on clean.

    Args:
        denoise: The teacher; one with a guidance branch is told its scale, and is called once where others are twice.
        process: The noise process that it was trained with.
        null: `(B) -> null conditions`.
        steps: Sampling steps; each call of the sampler is one of the (condition, null) pair.
        guidance_scale: The usual scale; at 1 the null branch is not computed.
        sampler: See `make_sampler`.
        strength: See `student_stepper`.

    Returns:
        The stepper.

    Raises:
        MusiccmError: Steps, scale or strength out of range, or a sampler that does not suit a teacher.
    """
    rule = suited_sampler(sampler, student=False)
    timesteps = teacher_timesteps(steps, process, rule)
    if not math.isfinite(guidance_scale):
        raise MusiccmError(f"guidance_scale: expected a finite number, found {guidance_scale}")
    last = timesteps[-max(1, round(_checked_strength(strength) * len(timesteps))) :]
    if getattr(denoise, "takes_scale", False):
        return Stepper(denoise, process, last, rule, told=guidance_scale)
    return Stepper(denoise, process, last, rule, Guidance(null, guidance_scale))


def suited_sampler(spec: SamplerSpec, student: bool) -> Sampler:
    """The sampler that a configuration names, where it suits the kind of model.

    Args:
        spec: See `make_sampler`.
        student: Whether the model is a distilled student, and not a teacher.

    Returns:
        The sampler.

    Raises:
        MusiccmError: As `make_sampler`; or it does not suit the model.
    """
    sampler = make_sampler(spec)
    if not (sampler.students if student else sampler.teachers):
        fitting = [name for name, kind in SAMPLERS.items() if (kind.students if student else kind.teachers)]
        raise MusiccmError(f"sampler: the model is a {'distilled student' if student else 'teacher'}, which "
                           f"{', '.join(fitting)} sample, found {sampler.name}")
    if student and isinstance(sampler, TeacherRule) and sampler.schedule != SCHEDULES[0]:
        raise MusiccmError(f"schedule: a distilled student is sampled at the timesteps of its training grid; "
                           f"found {sampler.schedule}, which is for teachers. Leave it out")
    return sampler


def _checked_strength(strength: float) -> float:
    if not 0.0 < strength <= 1.0:
        raise MusiccmError(f"strength: expected a number above 0 and up to 1, found {strength}")
    return strength
