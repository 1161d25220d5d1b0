"""Means and ratios over runs, against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from musiccm.cli import main


def write_run(folder: Path, experiment: str, student_fd: float, n: int = 256) -> str:
    rows: list[dict[str, Any]] = [
        {"model": "teacher", "steps": 2, "network_calls": 4.0, "fd_tagger": 40.0},
        {"model": "teacher", "steps": 50, "network_calls": 100.0, "fd_tagger": 20.0},
        {"model": "student", "steps": 4, "network_calls": 4.0, "fd_tagger": student_fd, "is_tagger_mean": None},
    ]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"schema": 1, "experiment": experiment, "n": n, "rows": rows}))
    return str(folder)


def test_seeds_are_averaged_and_experiments_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", "demo", 22.0), write_run(tmp_path / "b", "demo", 26.0),
            write_run(tmp_path / "c", "paper", 60.0)]
    assert main(["compare", *runs]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {tuple(line[:3]): dict(zip(table[0], line, strict=True)) for line in table[2:]}
    demo, paper = rows["demo", "student", "4"], rows["paper", "student", "4"]
    assert demo["runs"] == "2" and demo["fd_tagger"] == "24 ± 2.8"  # sqrt(((-2)^2 + 2^2) / 1)
    assert demo["x most steps"] == "1.2 ± 0.14" and demo["x equal calls"] == "0.6 ± 0.071"
    assert paper["runs"] == "1" and paper["fd_tagger"] == "60" and paper["x most steps"] == "3"
    assert rows["demo", "teacher", "50"]["x most steps"] == "1"


def test_runs_of_different_n_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write_run(tmp_path / "a", "demo", 2.0), write_run(tmp_path / "b", "demo", 2.0, n=64)]) == 2
    assert "n = 64" in capsys.readouterr().err


def test_a_run_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert str(tmp_path / "results.json") in capsys.readouterr().err
