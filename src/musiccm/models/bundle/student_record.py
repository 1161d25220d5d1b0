"""How a student may be sampled: what its `musiccm.json` records, and what its scheduler must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from musiccm.diffusion import (
    Angle,
    NoiseProcess,
    NoiseSchedule,
    RectifiedFlow,
    StudentGuidance,
    noise_process,
    student_grid,
)
from musiccm.errors import MusiccmError

# Class of a student's scheduler file, by the noise process that its teacher has.
STUDENT_SCHEDULERS: dict[type[NoiseProcess], str] = {
    NoiseSchedule: "LCMScheduler", RectifiedFlow: "FlowMatchLCMScheduler", Angle: "AngleLCMScheduler"
}
# In place of diffusers' LCMScheduler, which has whole timesteps alone, for students of a grid between them: it would
# read their file as another grid, without a word.
LINSPACE_SCHEDULER = "LinspaceLCMScheduler"
# diffusers' LCMScheduler has this number written into it.
LCM_SIGMA_DATA = 0.5
# Few-step: those that students are scored at, and the one that is used unless another is asked for.
SAMPLING_STEPS, DEFAULT_STEPS = (1, 2, 4, 8), 4

# What a student's scheduler must state itself: without them a sampler would take its library's defaults.
_STATED = ("original_inference_steps", "prediction_type", "timestep_scaling", "num_train_timesteps")
# What every record states of its noise process, null where the process has none; of any other process, its `config`.
_PROCESS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "shift")


def scheduler_class(process: NoiseProcess, grid: str = "even") -> str:
    """The class of a student's scheduler file.

    Args:
        process: Its noise process, which is its teacher's.
        grid: How its grid's points lie, one of `GRIDS`.

    Raises:
        MusiccmError: There is none for such processes.
    """
    kind = type(process)
    if kind not in STUDENT_SCHEDULERS:
        raise MusiccmError(f"{kind.__module__}.{kind.__qualname__}: no scheduler class stands for the students of this "
                           "noise process; give it one in STUDENT_SCHEDULERS of "
                           "musiccm/models/bundle/student_record.py and in FAMILIES of musiccm/diffusion/families.py "
                           "(docs/extend.md)")
    found = STUDENT_SCHEDULERS[kind]
    return LINSPACE_SCHEDULER if grid == "linspace" and found == STUDENT_SCHEDULERS[NoiseSchedule] else found


def recorded_grid(scheduler: Mapping[str, Any]) -> Tensor:
    """The timesteps that a student was trained on, and may be sampled at.

    Args:
        scheduler: Its `scheduler_config.json`; older ones, and those that diffusers reads, state no `grid`, and are
            even.

    Returns:
        As `student_grid`.

    Raises:
        MusiccmError: There is no such grid.
    """
    return student_grid(int(scheduler["num_train_timesteps"]), int(scheduler["original_inference_steps"]),
                        scheduler.get("grid", "even"), "original_inference_steps")


def is_student(scheduler: Mapping[str, Any]) -> bool:
    """Whether a `scheduler_config.json` is a distilled student's, by its class."""
    return scheduler.get("_class_name") in (*STUDENT_SCHEDULERS.values(), LINSPACE_SCHEDULER)


def recorded_sampler(record: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler that a student was exported with, as `make_sampler` takes it.

    Args:
        record: `distillation` of its `musiccm.json`; exports of version 0.1 state the `gamma` of `lcm` alone.

    Returns:
        Its name and fields.
    """
    stated = record.get("sampler", {"name": "lcm", "gamma": record.get("gamma", 1.0)})
    return dict(stated) if isinstance(stated, Mapping) else {"name": stated}


def recorded_guidance(record: Mapping[str, Any]) -> StudentGuidance:
    """How a student is guided, as its export states it.

    Args:
        record: `distillation` of its `musiccm.json`; older exports state no `guidance`, and are fixed.

    Returns:
        The kind, the default scale and the range.

    Raises:
        MusiccmError: What is stated contradicts itself, or is no number.
    """
    kind, default = record.get("guidance", "fixed"), StudentGuidance()
    scale = record.get("guidance_scale", default.scale if kind == "fixed" else None)
    ends = record.get("guidance_range", list(default.range) if kind != "variable" else None)
    numbers = [scale, *ends] if isinstance(ends, list) else []
    if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise MusiccmError(f"guidance: expected a number guidance_scale, found {scale!r}, and of a variable student "
                           f"two numbers guidance_range, found {ends!r}")
    return StudentGuidance(kind, float(numbers[0]), (float(numbers[1]), float(numbers[2])))


def guidance_record(guidance: StudentGuidance) -> dict[str, Any]:
    """What a student records of its guidance.

    Args:
        guidance: How it is guided.

    Returns:
        `guidance` and `guidance_scale`, and the `guidance_range` of a variable student.
    """
    ranged = {"guidance_range": list(guidance.range)} if guidance.kind == "variable" else {}
    return {"guidance": guidance.kind, "guidance_scale": guidance.scale, **ranged}


def sampler_record(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What a student records of the sampler that it was trained for.

    Args:
        scheduler: Its `scheduler_config.json`.

    Returns:
        The scheduler's numbers; `timesteps`, the grid; `sampling_steps` that it is meant for, and `default_steps`.
    """
    timesteps = recorded_grid(scheduler).tolist()
    return {
        "scheduler": scheduler.get("_class_name", STUDENT_SCHEDULERS[NoiseSchedule]),
        **dict(_numbers(scheduler)),
        "timesteps": timesteps,
        "sampling_steps": [steps for steps in SAMPLING_STEPS if steps <= len(timesteps)],
        "default_steps": min(DEFAULT_STEPS, len(timesteps)),
    }


def _numbers(scheduler: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in (*_STATED, *_PROCESS):
        yield key, scheduler.get(key)
    yield "sigma_data", scheduler.get("sigma_data", LCM_SIGMA_DATA)
    yield "grid", scheduler.get("grid", "even")
    # last, as a file that lacks one of the others cannot be read
    yield from ((key, value) for key, value in noise_process(scheduler).config().items() if key not in _PROCESS)


def check_sampler(record: Mapping[str, Any], scheduler: Mapping[str, Any], where: Path) -> None:
    """Refuse to sample a student with other settings than it was trained with, which would be wrong without a word.

    Args:
        record: `distillation` of `musiccm.json`; empty for a teacher. Keys that older exports lack are not compared.
        scheduler: What `scheduler_config.json` holds.
        where: That file, for messages.

    Raises:
        MusiccmError: The scheduler is of another class than a student's, lacks a key or contradicts the record.
    """
    found, known = scheduler.get("_class_name"), (*STUDENT_SCHEDULERS.values(), LINSPACE_SCHEDULER)
    if record and found != record.get("scheduler", found if found in known else known[0]):
        raise MusiccmError(f"{where}: _class_name is {found!r}, but this is a distilled student (musiccm.json), which "
                           f"only {record.get('scheduler', known[0])!r} samples; restore it")
    if not is_student(scheduler):
        return
    for key in _STATED:
        if key not in scheduler:
            hint = f"; it was trained with {record[key]!r} (musiccm.json)" if key in record else ""
            raise MusiccmError(f"{where}: '{key}' is missing; a distilled student's scheduler must state it{hint}")
    for key, value in _numbers(scheduler):
        if record.get(key, value) != value:
            raise MusiccmError(f"{where}: {key} is {value!r}, but the student was trained with {record[key]!r} "
                               "(musiccm.json); restore it")
    try:
        timesteps = recorded_grid(scheduler).tolist()
    except MusiccmError as error:
        raise MusiccmError(f"{where}: {error}") from None
    wanted = scheduler_class(noise_process(scheduler), scheduler.get("grid", "even"))
    if found != wanted:
        raise MusiccmError(f"{where}: _class_name is {found!r}, but a student of a grid of kind "
                           f"{scheduler.get('grid', 'even')!r} has {wanted!r}; restore it")
    if record.get("timesteps", timesteps) != timesteps:
        raise MusiccmError(f"{where}: gives the timesteps {timesteps}, but the student was trained on "
                           f"{record['timesteps']} (musiccm.json); restore the two files")
