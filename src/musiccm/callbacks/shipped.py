"""A student that lies on disk as a bundle, as contenders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from musiccm.callbacks.contenders import Contender, student_contender
from musiccm.errors import MusiccmError
from musiccm.pipeline import Pipeline


def shipped_contenders(
    path: str | Path, all_steps: Sequence[int], device: torch.device | str = "cpu", model: str = "student_shipped"
) -> list[Contender]:
    """Read a student's bundle as users do, and sample it with the settings that it was exported with.

    Args:
        path: A bundle's name or folder.
        all_steps: Sampling steps.
        device: Where to run.
        model: What the rows are called.

    Returns:
        One contender a step count.

    Raises:
        MusiccmError: The bundle is no distilled student.
    """
    pipeline = Pipeline.from_pretrained(path).to(device)
    if not pipeline.is_student:
        raise MusiccmError(
            f"{path}: expected a distilled student, found a teacher (its scheduler is no LCMScheduler); "
            "export a student with `musiccm export`"
        )
    gamma = float(pipeline.record.get("gamma", 1.0))
    return [
        student_contender(
            pipeline.consistency, pipeline.schedule, pipeline.conditioner, pipeline.codec, pipeline.latent_shape, steps,
            pipeline.grid, gamma, model,
        )
        for steps in all_steps
    ]
