"""The table in its three forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from musiccm.evaluation.results import at_chance, format_table, plot_fd, sort_rows, write_results


def row(model: str, steps: int, fd: float, calls: float, **more: object) -> dict:
    return {
        "model": model, "steps": steps, "guidance_scale": 3.0 if model == "teacher" else None, "network_calls": calls,
        "fd_tagger": fd, "is_tagger_mean": 5.0, "is_tagger_std": 0.1, "kl_tagger": 0.4, "ta_similarity": 0.3,
        "sim_aa_90": 0.1, "sim_aa_95": 0.0, "acc_drums": 0.75, "latency_s": 0.2, "n": 256, **more,
    }


ROWS = [
    row("student", 4, 26.0, 4.0),
    row("teacher", 1, 190.0, 2.0, from_cache=True),
    row("student_shipped", 4, 21.0, 4.0),
    row("teacher", 50, 20.0, 100.0, kl_tagger=math.nan),
    row("student", 1, 36.0, 1.0, n=250),
]
REFERENCES = {"test_set_ta": 0.325, "retrieval_max_ta": 0.423}


def test_json_has_the_schema_and_no_nan(tmp_path: Path) -> None:
    write_results(tmp_path / "run" / "results.json", "demo", ROWS, REFERENCES, seed=0)
    found = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert found["schema"] == 1
    assert found["experiment"] == "demo"
    assert found["n"] == 250
    assert found["references"] == REFERENCES
    assert found["seed"] == 0
    assert [(r["model"], r["steps"]) for r in found["rows"]] == [
        ("teacher", 1), ("teacher", 50), ("student", 1), ("student", 4), ("student_shipped", 4)
    ]
    assert found["rows"][1]["kl_tagger"] is None
    assert "fd_pann" not in found["rows"][0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]


def test_table_is_relative_to_the_teacher_at_its_most_steps() -> None:
    lines = format_table(ROWS, REFERENCES).splitlines()
    head = lines[0].split()
    assert head[:3] == ["model", "steps", "calls"]
    student = next(line for line in lines if line.startswith("student ") and line.split()[1] == "4").split()
    assert student[2:5] == ["4", "26.00", "1.30"]
    assert "0.75" in student
    cached = next(line for line in lines if line.startswith("teacher") and line.split()[1] == "1")
    assert "0.200*" in cached
    assert "test_set_ta 0.325" in lines[-2]
    assert "cache" in lines[-1]


def test_attributes_stand_above_chance_and_those_that_nobody_can_tell_are_left_out() -> None:
    """Figures of the demo's test clips: metre and mode are told no better than by naming the commonest."""
    chance = {"acc_drums_chance": 0.28, "acc_metre_chance": 0.879, "acc_mode_chance": 0.414}
    rows = [row("student", 4, 26.0, 4.0, acc_metre=0.88, acc_mode=0.37, **chance)]
    references = {"acc_drums_real": 1.0, "acc_metre_real": 0.875, "acc_mode_real": 0.387}
    assert at_chance(rows[0], references) == ["metre", "mode"]
    lines = format_table(rows, references, notes=["what it was compared with"]).splitlines()
    head, student, last = lines[0].split(), lines[2].split(), lines[3].split()
    assert head[-3:] == ["drums", "s/clip", "n"] and not {"metre", "mode"} & set(head)
    assert student[-3] == "0.75" and last == ["chance", "0.28"]
    assert lines[3].rstrip().endswith("0.28") and lines[3].index("0.28") == lines[2].index("0.75"), "in its column"
    assert "left out, for the tagger cannot tell them: metre (real clips 0.875, chance 0.879), mode" in lines[-2]
    assert lines[-1] == "what it was compared with"
    # two standard errors of 256 clips: sqrt(.414 * .586 / 256) = .0308
    assert at_chance(rows[0], {"acc_mode_real": 0.414 + 0.061}) == ["mode"]
    assert at_chance(rows[0], {"acc_mode_real": 0.414 + 0.063}) == []


def test_table_without_a_teacher_has_no_ratio() -> None:
    text = format_table([r for r in ROWS if r["model"] == "student"], {})
    assert text.splitlines()[2].split()[4] == "-"


def test_plot_draws_each_model(tmp_path: Path) -> None:
    drawn = {}
    for name, rows in {"one": [r for r in ROWS if r["model"] == "teacher"], "all": ROWS}.items():
        plot_fd(tmp_path / f"{name}.png", rows)
        drawn[name] = imread(tmp_path / f"{name}.png")
    assert drawn["all"].shape == drawn["one"].shape
    assert not np.array_equal(drawn["all"], drawn["one"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "one.png"]


def test_sorting_leaves_the_argument_alone() -> None:
    before = list(ROWS)
    assert sort_rows(ROWS)[0]["model"] == "teacher"
    assert before == ROWS
