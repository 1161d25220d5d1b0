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
    assert demo["runs"] == "2" and demo["fd_tagger ↓"] == "24 ± 2.8"  # sqrt(((-2)^2 + 2^2) / 1)
    assert demo["x most steps"] == "1.2 ± 0.14" and demo["x equal calls"] == "0.6 ± 0.071"
    assert paper["runs"] == "1" and paper["fd_tagger ↓"] == "60" and paper["x most steps"] == "3"
    assert rows["demo", "teacher", "50"]["x most steps"] == "1"


def test_sim_aa_of_different_training_clips_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runs = [write_run(tmp_path / name, "demo", 22.0) for name in "ab"]
    for run, gallery in zip(runs, ({"all": {"clips": 20}}, None), strict=True):  # version 0.1 stated none
        path = Path(run) / "results.json"
        content = json.loads(path.read_text()) | ({"sim_aa_gallery": gallery} if gallery else {})
        content["rows"] = [row | {"sim_aa_90": 0.5} for row in content["rows"]]
        path.write_text(json.dumps(content))
    assert main(["compare", runs[0]]) == 0
    assert "SIM@90" in capsys.readouterr().out and not caplog.text
    assert main(["compare", *runs]) == 0
    assert "SIM@90" not in capsys.readouterr().out and "different training clips" in caplog.text


def test_times_are_those_of_the_run_and_of_one_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def times(*machines: str, **more: Any) -> list[str]:
        runs = []
        for number, machine in enumerate(machines):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            path = Path(write_run(folder, "demo", 22.0)) / "results.json"
            content = json.loads(path.read_text())
            content["machine"] = {"device": machine}
            for row in content["rows"]:
                row |= {"latency_s": number + 1.0, **(more if row["model"] == "teacher" else {})}
            path.write_text(json.dumps(content))
            runs.append(str(folder))
        assert main(["compare", *runs]) == 0
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        place = lines[0].index("s/clip ↓") if "s/clip ↓" in lines[0] else None
        return [] if place is None else [line[place] for line in lines[2:]]

    assert times("a", "a") == ["1.5 ± 0.71"] * 3
    assert times("a", "b") == []
    # an older version's time from the cache of teacher rows, and one that was measured anew
    assert times("a", from_cache=True) == ["-", "-", "1"]
    assert times("a", from_cache=True, latency_batches=1) == ["1", "1", "1"]


def test_runs_of_different_n_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write_run(tmp_path / "a", "demo", 2.0), write_run(tmp_path / "b", "demo", 2.0, n=64)]) == 2
    assert "n = 64" in capsys.readouterr().err


def test_a_run_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert str(tmp_path / "results.json") in capsys.readouterr().err


def test_equal_calls_are_those_of_the_teachers_best_sampler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write_run(tmp_path / "a", "demo", 22.0)) / "results.json"
    content = json.loads(path.read_text())
    content["rows"] += [{"model": "teacher_dpm", "steps": 2, "network_calls": 4.0, "fd_tagger": 25.0}]
    path.write_text(json.dumps(content))
    assert main(["compare", str(path)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    (student,) = [dict(zip(lines[0], line, strict=True)) for line in lines if line[1] == "student"]
    assert (student["x equal calls"], student["x most steps"]) == ("0.88", "1.1")  # 22 / 25, not 22 / 40


def test_a_run_of_version_01_is_averaged_with_a_later_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name, "demo", 22.0) for name in ("old", "new")]
    for run, model in zip(runs, ("student_shipped", "student_packaged"), strict=True):
        path = Path(run) / "results.json"
        content = json.loads(path.read_text())
        content["rows"][-1]["model"] = model
        path.write_text(json.dumps(content))
    assert main(["compare", *runs]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in table if "student" in line[1]] == [["demo", "student_packaged", "4", "2"]]
