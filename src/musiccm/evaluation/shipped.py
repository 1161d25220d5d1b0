"""A student that lies on disk as a bundle, as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import Candidate, student_candidate
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import is_student
from musiccm.pipeline import Pipeline


def check_shipped(path: str | Path) -> None:
    """Refuse a bundle that is missing, incomplete or no student, without reading its weights.

    Args:
        path: A bundle's name or folder.

    Raises:
        MusiccmError: It cannot be scored; the message says why.
    """
    try:
        bundle = Bundle.from_pretrained(path)
    except MusiccmError as error:
        raise MusiccmError(
            f"evaluation.shipped_student: {error} To score this run without it, set shipped_student: null"
        ) from error
    if not is_student(bundle.scheduler_config):
        raise MusiccmError(
            f"evaluation.shipped_student: {path}: expected a distilled student, found a teacher (its scheduler is no "
            "LCMScheduler); export a student with `musiccm export`, or set shipped_student: null"
        )


def shipped_candidates(
    path: str | Path, all_steps: Sequence[int], device: torch.device | str = "cpu", model: str = "student_shipped"
) -> list[Candidate]:
    """Read a student's bundle as users do, and sample it with the settings that it was exported with.

    Args:
        path: A bundle's name or folder.
        all_steps: Sampling steps.
        device: Where to run.
        model: What the rows are called.

    Returns:
        One candidate a step count.

    Raises:
        MusiccmError: The bundle is missing, or no distilled student.
    """
    check_shipped(path)
    pipeline = Pipeline.from_pretrained(path, decoder="original").to(device)
    gamma = float(pipeline.record.get("gamma", 1.0))
    return [
        student_candidate(
            pipeline.consistency, pipeline.schedule, pipeline.conditioner, pipeline.codec, pipeline.latent_shape, steps,
            pipeline.grid, gamma, model,
        )
        for steps in all_steps
    ]
