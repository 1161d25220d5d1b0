"""The table in its three forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from musiccm.evaluation.result_plots import metric_figure
from musiccm.evaluation.results import at_chance, format_table, plot_metric, sort_rows, write_plots, write_results


def row(model: str, steps: int, fd: float, calls: float | None, **more: object) -> dict:
    return {
        "model": model, "steps": steps, "guidance_scale": 3.0 if model == "teacher" else None, "network_calls": calls,
        "fd_tagger": fd, "is_tagger_mean": 5.0, "is_tagger_std": 0.1, "kl_tagger": 0.4, "ta_similarity": 0.3,
        "sim_aa_90": 0.1, "sim_aa_95": 0.0, "acc_drums": 0.75, "latency_s": 0.2, "n": 256, **more,
    }


def compared(model: str, steps: int, excess: float, calls: float, decoder: str = "fast", **more: object) -> dict:
    """A row with the headline figures; the ratio is to an excess of 12."""
    ratio = excess / 12
    return row(model, steps, excess + 4, calls, decoder=decoder, n=2048, **{
        "floor_fd_tagger": 4.0, "excess_fd_tagger": excess, "excess_fd_tagger_low": excess - 0.5,
        "excess_fd_tagger_high": excess + 0.5, "excess_fd_tagger_bias": 0.25, "excess_fd_tagger_ratio": ratio,
        "excess_fd_tagger_ratio_low": ratio - 0.05, "excess_fd_tagger_ratio_high": ratio + 0.06,
        "kad_tagger": excess / 10, "kad_tagger_low": excess / 10 - 0.03, "kad_tagger_high": excess / 10 + 0.03,
        "coverage_tagger": 0.9, "draws_tagger": 200, **more})


FLOOR = {"model": "floor", "steps": 0, "decoder": "fast", "network_calls": None, "n": 2048, "fd_tagger": 4.0,
         "floor_fd_tagger": 4.0, "excess_fd_tagger": 0.0, "kad_tagger": 0.0, "kad_tagger_low": -0.02,
         "kad_tagger_high": 0.02, "coverage_tagger": 0.968}
#: As versions 0.1 and 0.2 wrote them.
OLD = [
    row("student_fast", 4, 22.0, 4.0),
    row("student", 4, 26.0, 4.0),
    row("teacher", 1, 190.0, 2.0, from_cache=True),
    row("student_packaged", 4, 21.0, 4.0),
    row("teacher", 50, 20.0, 100.0, kl_tagger=math.nan),
    row("student", 1, 36.0, 1.0, n=250),
]
NEW = [
    compared("student", 4, 9.0, 4.0, excess_fd_tagger_equal_calls_ratio=0.375,
             excess_fd_tagger_equal_calls_ratio_low=0.33, excess_fd_tagger_equal_calls_ratio_high=0.42,
             excess_fd_tagger_equal_calls_teacher="teacher_dpm_unguided@4"),
    compared("teacher", 50, 20.0, 100.0, decoder="original"),
    compared("teacher", 50, 12.0, 100.0),
    compared("student", 1, 180.0, 1.0, excess_fd_tagger_ratio=None, excess_fd_tagger_ratio_low=None,
             excess_fd_tagger_ratio_high=None, excess_fd_tagger_ratio_why="the denominator is not clearly above 0"),
    FLOOR,
]
REFERENCES = {"test_set_ta": 0.325, "retrieval_max_ta": 0.423}


def cells(lines: list[str], model: str, steps: str = "-") -> list[list[str]]:
    """The cells of a model's lines behind its name and steps; columns are two spaces or more apart."""
    found = [[cell for cell in line.split("  ") if cell] for line in lines if line.startswith(f"{model} ")]
    return [[cell.strip() for cell in line[2:]] for line in found if line[1].strip() == steps]


def test_json_has_the_schema_and_no_nan(tmp_path: Path) -> None:
    write_results(tmp_path / "run" / "results.json", "demo", OLD, REFERENCES, seed=0)
    found = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert found["schema"] == 1
    assert found["experiment"] == "demo"
    assert found["n"] == 250
    assert found["references"] == REFERENCES
    assert found["seed"] == 0
    assert [(r["model"], r["steps"]) for r in found["rows"]] == [
        ("student_fast", 4), ("teacher", 1), ("teacher", 50), ("student", 1), ("student", 4), ("student_packaged", 4)
    ]
    assert found["rows"][2]["kl_tagger"] is None
    assert "fd_pann" not in found["rows"][0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]


def test_rows_stand_by_decoder_with_the_floor_first() -> None:
    before = list(NEW)
    assert [(r["decoder"], r["model"], r["steps"]) for r in sort_rows(NEW)] == [
        ("fast", "floor", 0), ("fast", "teacher", 50), ("fast", "student", 1), ("fast", "student", 4),
        ("original", "teacher", 50)]
    assert before == NEW
    text = format_table(NEW, REFERENCES)
    fast, original = text.index("fast decoder, n = 2,048; x teacher: ratio to teacher@50 with its"), text.index(
        "original decoder, n = 2,048")
    assert fast == 0 < original


def test_the_headline_comes_first_with_its_intervals_and_lines_are_short() -> None:
    lines = format_table(NEW, REFERENCES).splitlines()
    head = lines[2].split("  ")
    assert [cell.strip() for cell in head if cell] == [
        "model", "steps", "calls ↓", "s/clip ↓", "excess FD ↓", "x teacher", "KAD ↓", "coverage ↑",
        "x teacher at equal calls", "which is"]
    first, second = cells(lines, "student", "4")
    assert first == ["4", "0.200", "9.00", "0.75 [0.70, 0.81]", "0.90", "0.900", "0.38 [0.33, 0.42]",
                     "teacher_dpm_unguided@4"]
    assert second[:3] == ["13.00", "5.00 ± 0.10", "0.400"]
    assert cells(lines, "floor")[0] == ["-", "-", "0.00", "-", "0.00", "0.968", "-", "-"]
    assert cells(lines, "student", "1")[0][3] == "-"
    assert "no ratio of excess_fd_tagger for student@1: the denominator is not clearly above 0" in lines
    assert any("shifts an excess by up to 0.25" in line for line in lines)
    assert max(map(len, lines)) <= 140
    wide = [{**r, **{f"acc_group{i}": 0.5 for i in range(30)}} for r in NEW]
    lines = format_table(wide, {**REFERENCES, **{f"acc_group{i}_real": 0.9 for i in range(30)}}).splitlines()
    assert max(map(len, lines)) <= 140
    assert sum(line.startswith("student ") and line.split()[1] == "4" for line in lines) > 3
    assert all(any(f"group{i} ↑" in line for line in lines) for i in range(30))


def test_results_of_older_versions_are_shown_and_compared_within_their_decoder() -> None:
    lines = format_table(OLD, REFERENCES).splitlines()
    blocks = [i for i, line in enumerate(lines) if " decoder, n = " in line]
    assert [lines[i] for i in blocks] == ["fast decoder, n = 256",
                                          "original decoder, n = 250; x teacher: ratio to teacher@50"]
    fast, original = lines[: blocks[1]], lines[blocks[1]:]
    assert lines[2].split()[:5] == ["model", "steps", "calls", "↓", "s/clip"]
    assert cells(fast, "student", "4")[0][2:4] == ["22.00", "-"], "no ratio across decoders"
    assert cells(original, "student", "4")[0][:4] == ["4", "0.200", "26.00", "1.30"]
    assert cells(original, "teacher", "1")[0][1] == "0.200*"
    assert "test_set_ta 0.325" in lines[-2]
    assert "cache" in lines[-1]


def test_attributes_stand_above_chance_and_those_that_nobody_can_tell_are_left_out() -> None:
    """Figures of the demo's test clips: metre and mode are told no better than by naming the commonest."""
    chance = {"acc_drums_chance": 0.28, "acc_metre_chance": 0.879, "acc_mode_chance": 0.414}
    rows = [row("student", 4, 26.0, 4.0, acc_metre=0.88, acc_mode=0.37, **chance)]
    references = {"acc_drums_real": 1.0, "acc_metre_real": 0.875, "acc_mode_real": 0.387}
    assert at_chance(rows[0], references) == ["metre", "mode"]
    lines = format_table(rows, references, notes=["what it was compared with"]).splitlines()
    head, student, last = lines[2].split(), lines[4].split(), lines[5].split()
    assert head[-3:] == ["drums", "↑", "n"] and not {"metre", "mode"} & set(head)
    assert student[-2] == "0.75" and last == ["chance", "0.28"]
    assert lines[5].index("0.28") == lines[4].index("0.75"), "in its column"
    assert "left out, for the tagger cannot tell them: metre (real clips 0.875, chance 0.879), mode" in lines[-2]
    assert lines[-1] == "what it was compared with"
    # two standard errors of 256 clips: sqrt(.414 * .586 / 256) = .0308
    assert at_chance(rows[0], {"acc_mode_real": 0.414 + 0.061}) == ["mode"]
    assert at_chance(rows[0], {"acc_mode_real": 0.414 + 0.063}) == []


def test_a_table_without_a_teacher_has_no_ratio() -> None:
    lines = format_table([r for r in OLD if r["model"] == "student"], {}).splitlines()
    assert lines[0] == "original decoder, n = 250" and cells(lines, "student", "4")[0][3] == "-"


def test_one_plot_a_metric_and_decoder(tmp_path: Path) -> None:
    assert [path.name for path in write_plots(tmp_path / "old", OLD)] == [
        "fd_tagger_against_calls_fast.png", "fd_tagger_against_calls_original.png"]
    assert [path.name for path in write_plots(tmp_path / "new", [r for r in NEW if r["decoder"] == "fast"])] == [
        f"{name}_tagger_against_calls_fast.png" for name in ("excess_fd", "fd", "kad", "coverage")]
    assert all(path.stat().st_size > 5000 for path in tmp_path.rglob("*.png"))


def test_a_single_plot_is_of_the_decoder_with_most_rows(tmp_path: Path) -> None:
    plot_metric(tmp_path / "both.png", OLD, "fd_tagger")
    plot_metric(tmp_path / "original.png", [r for r in OLD if r["model"] != "student_fast"], "fd_tagger", "original")
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "original.png").read_bytes()


def test_plots_show_intervals_the_floor_and_what_they_are_of() -> None:
    figure = metric_figure([r for r in sort_rows(NEW) if r["decoder"] == "fast"], "kad_tagger", "fast")
    (axes,) = figure.axes
    assert axes.get_title() == "fast decoder, n = 2,048 clips, lower is better; bars: 95 % intervals"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["floor", "teacher@50", "teacher, DDIM", "student"]
    student = axes.containers[1]
    (segments,) = (lines.get_segments() for lines in student[2])
    np.testing.assert_allclose([segment[:, 1] for segment in segments], [[17.97, 18.03], [0.87, 0.93]])
    np.testing.assert_allclose(axes.lines[-2].get_ydata(), 0.0)


def test_lines_of_the_teachers_configurations_differ() -> None:
    rows = [compared(model, steps, 30 - steps, 2.0 * steps) for steps in (2, 4)
            for model in ("teacher", "teacher_heun", "teacher_dpm")]
    (axes,) = metric_figure(sort_rows(rows), "excess_fd_tagger", "fast").axes
    assert len({container[0].get_linestyle() for container in axes.containers}) == 3


def crowded() -> list[dict]:
    """Eight models whose points lie close together, two of them on top of each other."""
    random = np.random.RandomState(0)
    rows = [dict(FLOOR)]
    models = ["teacher", "teacher_heun", "teacher_dpm", "teacher_x", "teacher_y", "student", "student_packaged", "new"]
    for place, model in enumerate(models):
        for steps, excess in ((1, 20.0), (2, 14.0), (4, 12.5), (8, 12.0), (50, 11.8)):
            value = excess * (1 + 0.004 * place if place < 2 else random.uniform(0.9, 1.1))
            rows.append(compared(model, steps, value, steps * (2.0 if place < 3 else 1.0)))
    return rows


@pytest.mark.parametrize("make", [crowded, lambda: NEW[:1] + NEW[2:]])
def test_labels_cover_neither_each_other_nor_points_nor_bars(make: Callable[[], list[dict]]) -> None:
    figure = metric_figure(sort_rows(make()), "excess_fd_tagger", "fast")
    figure.canvas.draw()
    (axes,) = figure.axes
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    boxes = [note.get_window_extent(renderer) for note in axes.texts]
    assert len(boxes) >= len({(r["network_calls"], r["steps"]) for r in make() if r["network_calls"]})
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    points = [axes.transData.transform(xy) for c in axes.containers for xy in c[0].get_xydata()]
    bars = [axes.transData.transform(s) for c in axes.containers for lines in c[2] for s in lines.get_segments()]
    covered = [Bbox.from_bounds(x - 2.5 * scale, y - 2.5 * scale, 5 * scale, 5 * scale) for x, y in points]
    covered += [Bbox([ends.min(axis=0) - 0.5, ends.max(axis=0) + 0.5]) for ends in bars]
    inside = axes.get_window_extent(renderer)
    for box in boxes:
        assert not any(box.overlaps(other) for other in covered)
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    legend = figure.legends[0].get_window_extent(renderer)
    assert not legend.overlaps(inside)


def test_without_a_floor_there_is_no_ratio_of_distances_and_no_deviation_that_is_none() -> None:
    """A ratio of distances without their floor is mostly one of biases; rows of version 0.2 state nothing else."""
    rows = [row("teacher", 50, 20.0, 100.0, decoder="fast", excess_fd_tagger=None, is_tagger_std=None),
            row("student", 4, 26.0, 4.0, decoder="fast", excess_fd_tagger=None, is_tagger_mean=None)]
    table = format_table(rows, {})
    assert "26.00" in table and "1.30" not in table and "±" not in table
    assert "1.30" in format_table([row("teacher", 50, 20.0, 100.0), row("student", 4, 26.0, 4.0)], {})
