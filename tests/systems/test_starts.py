"""What a run says of a student that it starts from and that was trained otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundle import build_random_bundle

from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.systems.settings import Distillation
from musiccm.systems.student_weights import learned_otherwise, starting_weights

VARIABLE = {"guidance": "variable", "guidance_scale": 3.0, "guidance_range": [0.0, 6.0], "grid": "even",
            "grid_points": 50}
FIXED = {"guidance": "fixed", "guidance_scale": 3.0, "grid": "even", "grid_points": 50}


@pytest.mark.parametrize(("learned", "mine", "expected"), [
    (VARIABLE, {}, []),
    (VARIABLE, {"guidance_scale": 2.0}, []),
    (VARIABLE, {"guidance_range": [1.0, 4.0]}, ["guidance_range [0.0, 6.0] (here [1.0, 4.0])"]),
    (VARIABLE, {"grid_points": 25}, ["grid_points 50 (here 25)"]),
    (VARIABLE, {"guidance": "fixed"}, ["guidance variable (here fixed)"]),
    (FIXED, {"guidance": "fixed", "guidance_scale": 4.0}, ["guidance_scale 3.0 (here 4.0)"]),
    (FIXED, {"guidance": "fixed", "grid": "linspace"}, ["grid even (here linspace)"]),
    ({}, {"grid": "linspace", "grid_points": 3}, []),
])
def test_only_what_the_weights_have_learned_is_compared(
    learned: dict[str, Any], mine: dict[str, Any], expected: list[str]
) -> None:
    assert learned_otherwise(learned, replace(Distillation(**VARIABLE), **mine)) == expected


@pytest.mark.parametrize("exported", [False, True])
def test_a_start_of_another_grid_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, exported: bool
) -> None:
    teacher = Bundle.from_pretrained(build_random_bundle(tmp_path / "bundle", frames=4, evaluators=False))
    weights, start = teacher.unet.state_dict(), tmp_path / "student.ckpt"
    if exported:
        start = tmp_path / "student"
        export_student(teacher.unet, teacher, start, StudentInfo("epsilon", 3.0))
    else:
        torch.save({"state_dict": {f"student_ema_slow.module.{name}": value for name, value in weights.items()},
                    "student": {"distillation.prediction_type": "epsilon",
                                **{f"distillation.{key}": value for key, value in FIXED.items()}}}, start)
    same = Distillation(prediction_type="epsilon")
    for distillation, warned in ((same, False), (replace(same, grid_points=25), True)):
        with caplog.at_level(logging.WARNING):
            found = starting_weights(str(start), teacher, distillation, teacher.unet)
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        said = f"distillation.start: {start} was trained with grid_points 50 (here 25)"
        assert (said in caplog.text) == warned and ("was trained with" in caplog.text) == warned
