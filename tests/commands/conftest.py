"""A small student, exported, and an empty current folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import build_random_student


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student of random weights, with a fast decoder."""
    return build_random_student(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
