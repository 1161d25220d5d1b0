"""A student that lies on disk as a bundle, to be compared with the run's own."""

from __future__ import annotations

from pathlib import Path

import torch

from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import is_student
from musiccm.pipeline import Pipeline


def check_packaged(path: str | Path) -> None:
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
            f"evaluation.packaged_student: {error} To score this run without it, set packaged_student: null"
        ) from error
    if not is_student(bundle.scheduler_config):
        raise MusiccmError(
            f"evaluation.packaged_student: {path}: expected a distilled student, found a teacher (its scheduler is no "
            "LCMScheduler); export a student with `musiccm export`, or set packaged_student: null"
        )


def packaged_student(path: str | Path, device: torch.device | str = "cpu") -> Pipeline:
    """Read a student's bundle as users do; it is sampled as it was exported, and decoded by VAE and vocoder.

    Args:
        path: A bundle's name or folder.
        device: Where to run.

    Returns:
        The pipeline.

    Raises:
        MusiccmError: The bundle is missing, or no distilled student.
    """
    check_packaged(path)
    return Pipeline.from_pretrained(path, decoder="original").to(device)
