"""How a student may be sampled: what its `musiccm.json` records, and what its scheduler must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musiccm.diffusion import Angle, NoiseSchedule, RectifiedFlow, student_grid
from musiccm.errors import MusiccmError

# Class of a student's scheduler file, by the noise process that its teacher has.
STUDENT_SCHEDULERS = {NoiseSchedule: "LCMScheduler", RectifiedFlow: "FlowMatchLCMScheduler",
                      Angle: "AngleLCMScheduler"}
# diffusers' LCMScheduler has this number written into it.
LCM_SIGMA_DATA = 0.5
# Few-step: those that students are scored at, and the one that is used unless another is asked for.
SAMPLING_STEPS, DEFAULT_STEPS = (1, 2, 4, 8), 4

# What a student's scheduler must state itself: without them a sampler would take its library's defaults.
_STATED = ("original_inference_steps", "prediction_type", "timestep_scaling", "num_train_timesteps")
_PROCESS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "shift")


def is_student(scheduler: Mapping[str, Any]) -> bool:
    """Whether a `scheduler_config.json` is a distilled student's, by its class."""
    return scheduler.get("_class_name") in STUDENT_SCHEDULERS.values()


def sampler_record(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What a student records of the sampler that it was trained for.

    Args:
        scheduler: Its `scheduler_config.json`.

    Returns:
        The scheduler's numbers; `timesteps`, the grid; `sampling_steps` that it is meant for, and `default_steps`.
    """
    timesteps = student_grid(scheduler["num_train_timesteps"], scheduler["original_inference_steps"]).tolist()
    return {
        "scheduler": scheduler.get("_class_name", STUDENT_SCHEDULERS[NoiseSchedule]),
        **_numbers(scheduler),
        "timesteps": timesteps,
        "sampling_steps": [steps for steps in SAMPLING_STEPS if steps <= len(timesteps)],
        "default_steps": min(DEFAULT_STEPS, len(timesteps)),
    }


def _numbers(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: scheduler.get(key) for key in (*_STATED, *_PROCESS)},
            "sigma_data": scheduler.get("sigma_data", LCM_SIGMA_DATA)}


def check_sampler(record: Mapping[str, Any], scheduler: Mapping[str, Any], where: Path) -> None:
    """Refuse to sample a student with other settings than it was trained with, which would be wrong without a word.

    Args:
        record: `distillation` of `musiccm.json`; empty for a teacher. Keys that older exports lack are not compared.
        scheduler: What `scheduler_config.json` holds.
        where: That file, for messages.

    Raises:
        MusiccmError: The scheduler is of another class than a student's, lacks a key or contradicts the record.
    """
    found, known = scheduler.get("_class_name"), tuple(STUDENT_SCHEDULERS.values())
    if record and found != record.get("scheduler", found if found in known else known[0]):
        raise MusiccmError(f"{where}: _class_name is {found!r}, but this is a distilled student (musiccm.json), which "
                           f"only {record.get('scheduler', known[0])!r} samples; restore it")
    if not is_student(scheduler):
        return
    for key in _STATED:
        if key not in scheduler:
            hint = f"; it was trained with {record[key]!r} (musiccm.json)" if key in record else ""
            raise MusiccmError(f"{where}: '{key}' is missing; a distilled student's scheduler must state it{hint}")
    for key, value in _numbers(scheduler).items():
        if record.get(key, value) != value:
            raise MusiccmError(f"{where}: {key} is {value!r}, but the student was trained with {record[key]!r} "
                               "(musiccm.json); restore it")
    timesteps = student_grid(scheduler["num_train_timesteps"], scheduler["original_inference_steps"]).tolist()
    if record.get("timesteps", timesteps) != timesteps:
        raise MusiccmError(f"{where}: gives the timesteps {timesteps}, but the student was trained on "
                           f"{record['timesteps']} (musiccm.json); restore the two files")
