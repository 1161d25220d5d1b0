"""The paper's three tables from results on disk, cell by cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from musiccm.cli import main


def write_run(runs: Path, experiment: str, fd: float, version: int = 0, n: int = 256) -> Path:
    rows: list[dict[str, Any]] = [
        {"model": "teacher", "steps": 50, "fd_pann": 20.0, "is_pann_mean": 1.8, "kl_pann": 3.9, "ta_similarity": 0.28,
         "sim_aa_90": 0.43, "sim_aa_95": 0.047, "latency_s": 2.19},
        {"model": "student", "steps": 4, "fd_pann": fd, "is_pann_mean": 1.7, "kl_pann": 4.0, "ta_similarity": 0.27,
         "sim_aa_90": 0.33, "sim_aa_95": 0.021, "latency_s": 0.37},
    ]
    rows[0] |= {"from_cache": True} if version == 2 else {}
    references = {"test_set_ta": 0.325, "retrieval_max_ta": 0.423, "test_set_sim_aa_90": 0.5}
    folder = runs / experiment / f"version_{version}"
    folder.mkdir(parents=True)
    path = folder / "results.json"
    path.write_text(json.dumps({"schema": 1, "experiment": experiment, "n": n, "rows": rows, "references": references}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    ablations = tmp_path / "experiments/ablations"
    ablations.mkdir(parents=True)
    path = tmp_path / "experiments/big.yaml"
    path.write_text("trainer: {max_steps: 1}\n")
    (tmp_path / "experiments/other.yaml").write_text("trainer: {max_steps: 1}\n")
    (ablations / "no_adversarial.yaml").write_text("base: ../big.yaml\n")
    (ablations / "clap_features.yaml").write_text("base: [../big.yaml]\n")
    (ablations / "foreign.yaml").write_text("base: ../other.yaml\n")
    return path


def cells(text: str, *first: str) -> list[str]:
    """The cells of the line that begins with `first`, over all tables."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [cell for line in lines if tuple(line[: len(first)]) == first for cell in line[len(first) :]]


def test_three_tables_of_the_newest_run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    write_run(runs, "big", 99.0)
    newest = write_run(runs, "big", 27.13, version=1)
    write_run(runs, "no_adversarial", 28.65)
    write_run(runs, "foreign", 1.0)
    assert main(["tables", "--config", str(config), "--runs", str(runs)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "student", "4") == ["27.13", "1.7", "4", "0.37", "0.27", "0.33", "0.021"]
    assert cells(text, "test set", "-") == ["0.325", "0.5", "-"] and cells(text, "retrieval max", "-")[0] == "0.423"
    assert cells(text, "big") == ["27.13", "1.7", "4", "0.27", "256"]
    assert cells(text, "no_adversarial") == ["28.65", "1.7", "4", "0.27", "256"]
    assert "clap_features: not evaluated" in text and "foreign" not in text and "99" not in text
    assert newest.with_name("tables.md").read_text() == text.removesuffix("\n")


def test_runs_of_another_n_are_marked(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", "big", 27.0)
    write_run(tmp_path / "runs", "clap_features", 27.0, n=64)
    assert main(["tables", "--config", str(config), "--runs", str(tmp_path / "runs")]) == 0
    assert "clap_features was scored on n = 64 clips, not 256" in capsys.readouterr().out


def test_an_experiment_without_results_says_what_to_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", "--config", str(config), "--runs", str(tmp_path)]) == 2
    assert "musiccm test --config" in capsys.readouterr().err


def test_decoders_stand_apart_with_ratios_and_intervals(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "runs", "big", 27.0)
    found = json.loads(path.read_text())
    rows = [{**row, "decoder": decoder, "excess_fd_pann": excess, "excess_fd_pann_low": excess - 1.0,
             "excess_fd_pann_high": excess + 1.0, "excess_fd_pann_ratio": excess / 10, "excess_fd_pann_bias": 0.1,
             "excess_fd_pann_ratio_low": excess / 10 - 0.06, "excess_fd_pann_ratio_high": excess / 10 + 0.07}
            for decoder, share in (("original", 2.0), ("fast", 1.0))
            for row, excess in zip(found["rows"], (10.0 * share, 7.0 * share), strict=True)]
    rows.append({"model": "floor", "steps": 0, "decoder": "fast", "n": 256, "fd_pann": 8.0, "excess_fd_pann": 0.0})
    path.write_text(json.dumps({**found, "rows": rows}))
    assert main(["tables", "--config", str(config), "--runs", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    quality, captions, ablations = text.split("## ")[1:]
    assert cells(quality, "student", "4") == ["fast", "27", "7", "0.70 [0.64, 0.77]", "1.7", "4", "0.37",
                                              "original", "27", "14", "1.40 [1.34, 1.47]", "1.7", "4", "0.37"]
    assert cells(quality, "floor", "0")[:2] == ["fast", "8"]
    assert "_low" not in text and "_bias" not in text and "95 % interval" in quality
    assert "floor" not in captions and cells(captions, "student", "4")[0] == "fast"
    assert cells(ablations, "big", "fast")[0] == "27" and cells(ablations, "big", "original")[0] == "27"


def test_the_fast_student_of_older_versions_is_a_decoder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "runs", "big", 27.0)
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "rows": [*found["rows"], {**found["rows"][1], "model": "student_fast",
                                                                   "fd_pann": 21.5}]}))
    assert main(["tables", "--config", str(config), "--runs", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    assert cells(text.split("## ")[1], "student", "4", "fast")[0] == "21.5"
    assert cells(text.split("## ")[1], "student", "4", "original")[0] == "27"
