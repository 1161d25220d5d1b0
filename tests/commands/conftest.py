"""A small student, exported, and an empty current folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_bundle import build_random_bundle, make_unet

from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student of random weights, with a fast decoder."""
    folder = tmp_path_factory.mktemp("bundles")
    teacher = Bundle.from_pretrained(build_random_bundle(folder / "teacher", frames=4, evaluators=False, decoder=True))
    torch.manual_seed(11)
    return export_student(make_unet(frames=4), teacher, folder / "student", StudentInfo("v_prediction", 3.0))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
