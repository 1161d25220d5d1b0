"""Objectives on one teacher: excess, coverage and cost of runs whose numbers are made up, so that all else is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from musiccm.cli import main
from musiccm.commands._compared_cost import cost_notes, cost_s, cost_unit, training_table
from musiccm.commands._compared_plots import Measure, plot_objectives

FLOORS = {"fast": 7.9, "original": 24.6}


def row(model: str, steps: int, decoder: str, excess: float, **more: Any) -> dict[str, Any]:
    """With an interval of 10 % to either side."""
    floor = FLOORS[decoder]
    found = {"model": model, "steps": steps, "decoder": decoder, "network_calls": steps * 1.0, "n": 2048,
             "sampler": "lcm", "fd_tagger": floor + excess, "floor_fd_tagger": floor, "excess_fd_tagger": excess,
             "kad_tagger": excess / 10, "coverage_tagger": 0.9 - excess / 100}
    for key in ("excess_fd_tagger", "coverage_tagger"):
        found |= {f"{key}_low": 0.9 * found[key], f"{key}_high": 1.1 * found[key], f"{key}_ratio": found[key] / 13.0,
                  f"{key}_ratio_low": found[key] / 14.0, f"{key}_ratio_high": found[key] / 12.0}
    return found | {"excess_fd_tagger_equal_calls_ratio": 0.5, "excess_fd_tagger_equal_calls_ratio_low": 0.4,
                    "excess_fd_tagger_equal_calls_ratio_high": 0.6, "equal_calls_teacher": "teacher_dpm@2"} | more


def write(folder: Path, experiment: str, at_four: float, minutes: float | None = 10.0, **changes: Any) -> str:
    rows = [{"model": "floor", "steps": 0, "decoder": decoder, "n": 2048, "fd_tagger": FLOORS[decoder],
             "network_calls": None} for decoder in FLOORS]
    for decoder in FLOORS:
        rows += [row("teacher", 50, decoder, 13.0), row("student", 1, decoder, 3 * at_four),
                 row("student", 4, decoder, at_four)]
    training = {"seconds": 60 * (minutes or 0), "processor_seconds": 100 * (minutes or 0), "device": "x86_64",
                "devices": 1, "steps": 700, "batch": 32, "objective": experiment.upper(), "start": None}
    content = {"schema": 1, "experiment": experiment, "n": 2048, "rows": rows,
               "floor": "other renderings of the same captions", "test_clips": {"demo": {"asked": 9, "used": 9}},
               **({"training": training} if minutes is not None else {}), **changes}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    return str(folder)


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[list[list[dict[str, str]]], str]:
    """The tables, each a list of rows by head, and the whole text."""
    text = capsys.readouterr().out
    tables = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.M):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()]
        tables.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return tables, text


def test_a_table_a_decoder_and_one_of_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "a", "lcm", 20.0), write(tmp_path / "b", "dmd2", 9.0, 10.2),
            write(tmp_path / "c", "dmd2", 11.0, 9.8)]
    assert main(["compare", *runs]) == 0
    (fast, original, costs), text = printed(capsys)
    assert text.index("Decoder: fast") < text.index("Decoder: original")
    rows = {(r["experiment"], r["model"], r["steps"]): r for r in fast}
    one, two = rows["lcm", "student", "4"], rows["dmd2", "student", "4"]
    assert one["excess_fd_tagger ↓"] == "20 [18, 22]" and one["excess_fd_tagger x teacher"] == "1.54 [1.43, 1.67]"
    assert one["excess_fd_tagger x equal calls"] == "0.5 [0.4, 0.6]" and one["kad_tagger ↓"] == "2"
    assert one["fd_tagger ↓"] == "27.9" and original[0].keys() == fast[0].keys()
    assert two["runs"] == "2" and two["excess_fd_tagger ↓"] == "10 ± 1.4"  # sqrt(1 + 1)
    assert two["coverage_tagger ↑"].startswith("0.8 ±")
    assert list(fast[0])[:6] == ["experiment", "model", "steps", "runs", "calls", "excess_fd_tagger ↓"]
    assert not any("_low" in head or "floor" in head or "most steps" in head for head in fast[0])
    assert rows["lcm", "floor", "0"]["fd_tagger ↓"] == "7.9"
    assert {r["experiment"]: (r["objective"], r["minutes"], r["processor minutes"]) for r in costs} == {
        "lcm": ("LCM", "10", "16.7"), "dmd2": ("DMD2", "10", "16.7")}
    assert "floor: other renderings of the same captions" in text
    assert "differ" not in text and "not stated" not in text and "equal cost" not in text


def test_what_does_not_compare_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write(tmp_path / "a", "lcm", 20.0)
    unequal = write(tmp_path / "b", "dmd2", 9.0, 11.0)
    assert main(["compare", plain, unequal]) == 0
    said = "not at equal cost: processor minutes of training (x86_64) differ by more than 5%: lcm 16.7, dmd2 18.3"
    assert said in printed(capsys)[1]
    other = write(tmp_path / "c", "arc", 9.0, None, floor="other real clips")
    content = json.loads((tmp_path / "c/results.json").read_text())
    for found in content["rows"]:
        for key in ("fd_tagger", "floor_fd_tagger"):
            if found["decoder"] == "fast" and key in found:
                found[key] += 5
    (tmp_path / "c/results.json").write_text(json.dumps(content))
    assert main(["compare", plain, other]) == 0
    text = printed(capsys)[1]
    assert f"the floors through the decoder fast differ ({tmp_path}/a 7.9, {tmp_path}/c 12.9)" in text
    assert "the teacher at its most steps differs through the decoder fast" in text
    assert "through the decoder original differ" not in text
    assert "the floors are not of one kind (other real clips, other renderings of the same captions)" in text
    assert "what training took is not stated by arc" in text


@pytest.mark.parametrize(("changes", "said"), [
    ({"n": 512}, "n = 512"), ({"test_clips": {"demo": {"asked": 9, "used": 8}}}, "distances on different clips"),
    ({"rows": [{"model": "floor", "steps": 0, "decoder": "fast"}]}, "no row has a Frechet distance"),
])
def test_runs_that_cannot_stand_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert main(["compare", write(tmp_path / "a", "lcm", 2.0), write(tmp_path / "b", "dmd2", 2.0, **changes)]) == 2
    assert said in capsys.readouterr().err


def test_older_runs_stand_beside_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"model": model, "steps": 4, "network_calls": 4.0, "fd_tagger": fd}
            for model, fd in (("student", 41.1), ("student_fast", 26.6))]
    run = write(tmp_path / "a", "old", 1.0, None, rows=rows)
    assert main(["compare", write(tmp_path / "b", "lcm", 20.0), run]) == 0
    (fast, original, _), _ = printed(capsys)
    for table, fd in ((fast, "26.6"), (original, "41.1")):
        (found,) = [r for r in table if r["experiment"] == "old"]
        assert (found["model"], found["fd_tagger ↓"], found["excess_fd_tagger ↓"]) == ("student", fd, "-")
    assert main(["compare", run]) == 0
    ((student, fast_student),), text = printed(capsys)
    assert fast_student["model"] == "student_fast" and "Decoder" not in text and student["fd_tagger ↓"] == "41.1"
    assert main(["compare", run, "--out", str(tmp_path / "out")]) == 2
    assert "none of the runs states excess_fd_*" in capsys.readouterr().err


def test_the_tables_and_pictures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / name, name, 5.0 + n) for n, name in enumerate("abc")]
    out = tmp_path / "out"
    assert main(["compare", *runs, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.json", "compare.md", "objectives_fast.png", "objectives_original.png"]
    content = json.loads((out / "compare.json").read_text())
    (found,) = [r for r in content["rows"]["fast"] if (r["experiment"], r["steps"]) == ("b", 4)]
    assert found["excess_fd_tagger"] == {"mean": 6.0, "deviation": None, "low": pytest.approx(5.4),
                                         "high": pytest.approx(6.6), "runs": 1}
    assert (out / "compare.md").read_text().strip() in capsys.readouterr().out
    assert imread(out / "objectives_fast.png").shape[1] > 1000  # two panels of costs, one of coverage


def test_the_picture_shows_every_objective_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points, bars and names are read back from the figure that is written."""
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (kept.append(self), save(self, *args, **more)))
    names = [f"objective number {n}" for n in range(8)]
    rows = [{"experiment": name, "model": "student", "steps": steps,
             "excess_fd_tagger": Measure(10.0 + n, None, 9.0 + n, 12.0 + n), "coverage_tagger": Measure(0.5, 0.1)}
            for n, name in enumerate(names) for steps in (1, 4)]
    rows += [{"experiment": names[0], "model": "teacher", "steps": steps, "excess_fd_tagger": Measure(steps / 10)}
             for steps in (4, 50)]
    costs = {name: 10.0 + n / 10 for n, name in enumerate(names)}
    plot_objectives(tmp_path / "x.png", rows, "tagger", costs, "processor minutes of training (x)", "title")
    (figure,) = kept
    one, four, coverage = figure.axes
    for axes in (one, four):
        drawn = {(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers}
        assert drawn == {(10.0 + n / 10, 10.0 + n) for n in range(8)}
        ends = sorted(tuple(segment[:, 1]) for c in axes.containers for segment in c.lines[2][1].get_segments())
        assert ends == [(9.0 + n, 12.0 + n) for n in range(8)]
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
        assert line.get_ydata()[0] == 5.0  # the teacher at fifty steps
        assert axes.get_xlabel() == "processor minutes of training (x)"
    assert len(coverage.containers) == 16
    markers = [c.lines[0].get_marker() for c in one.containers]
    assert len(set(markers)) == 8
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names, "teacher@50"]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in legend.get_texts()]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[n + 1:])
    assert not any(legend.get_window_extent(renderer).overlaps(axes.get_window_extent(renderer))
                   for axes in figure.axes)
    # without costs that compare there is coverage alone
    plot_objectives(tmp_path / "y.png", rows, "tagger", {}, None, "title")
    assert len(kept[1].axes) == 1


def test_costs_on_a_gpu_and_of_different_devices() -> None:
    def run(name: str, seconds: float, device: str, **more: Any) -> dict[str, Any]:
        return {"experiment": name, "training": {"seconds": seconds, "device": device, "devices": 2,
                                                 "processor_seconds": None, "start": None, **more}}

    gpus = [run("a", 600, "H100"), run("b", 620, "H100")]
    assert cost_s(gpus[0]) == 1200 and cost_unit(gpus) == "device minutes of training (H100)"
    assert cost_notes(gpus) == []
    assert cost_notes([*gpus, run("c", 640, "H100")]) == [
        "not at equal cost: device minutes of training (H100) differ by more than 5%: a 20, b 20.7, c 21.3"]
    mixed = [*gpus, run("c", 600, "x86_64", processor_seconds=600.0)]
    assert cost_unit(mixed) is None and cost_notes(mixed) == [
        "trained on different devices (H100, x86_64): their times do not compare"]
    assert cost_notes([gpus[0], run("b", 600, "H100", start="musiccm-tiny-student")]) == [
        "some went on from a student whose own training is not counted, see `went on from`"]


def test_trajectories_are_part_of_the_cost() -> None:
    def run(name: str, minutes: float, made: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {"experiment": name, "training": {
            "seconds": 30 * minutes, "processor_seconds": 60 * minutes, "device": "x86_64", "devices": 1, "start": None,
            "objective": "LCM", **({} if made is None else {"trajectories": made}), **more}}

    def made(minutes: float, **more: Any) -> dict[str, Any]:
        return {"paths": 9, "seconds": 30 * minutes, "processor_seconds": 60 * minutes, "device": "x86_64", **more}

    lcm, cmt = run("lcm", 5.0), run("cmt", 2.5, made(2.5), objective="CMT")
    assert cost_s(cmt) == 300 and cost_notes([lcm, cmt]) == []
    row, = training_table([cmt])
    assert (row["minutes"], row["processor minutes"]) == ("1.25", "2.5")
    assert (row["minutes of trajectories"], row["processor minutes of trajectories"]) == ("1.25", "2.5")
    assert "minutes of trajectories" not in training_table([lcm])[0]
    assert cost_notes([lcm, run("cmt", 2.5, made(5.0))]) == [
        "not at equal cost: processor minutes of training (x86_64) differ by more than 5%: lcm 5, cmt 7.5"]
    # made on another device
    on_gpu = run("cmt", 5.0, made(1.0, processor_seconds=None, device="H100"))
    assert cost_unit([lcm, on_gpu]) is None and cost_notes([lcm, on_gpu]) == [
        "trained on different devices (H100, x86_64): their times do not compare"]
    # of a folder, or of results, of an older version
    for unknown in (run("cmt", 5.0, made(0, seconds=None, processor_seconds=None, device=None)),
                    run("cmt", 5.0, objective="CMT")):
        assert cost_s(unknown) == 300 and cost_unit([lcm, unknown]) == "processor minutes of training (x86_64)"
        assert cost_notes([lcm, unknown]) == ["what the trajectories took is not stated by cmt, and not in the cost"]


def test_steps_are_the_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "a", "old", 2.0), write(tmp_path / "b", "dmd2", 3.0)
    content = json.loads((tmp_path / "b/results.json").read_text())
    content["training"] |= {"steps": 70, "updates": 380}
    (tmp_path / "b/results.json").write_text(json.dumps(content))
    assert main(["compare", old, new]) == 0
    costs = printed(capsys)[0][-1]
    # what older results call steps are the updates of student and critic
    assert [(r["steps"], r["updates"]) for r in costs] == [("-", "700"), ("70", "380")]


def edit(run: str, **changes: Any) -> str:
    path = Path(run) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return run


def test_two_networks_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "a", "old", 2.0)  # states none
    first = write(tmp_path / "b", "lcm", 3.0, embedders={"tagger": "abc", "events": "1"})
    second = write(tmp_path / "c", "dmd2", 4.0, embedders={"tagger": "abc", "pann": "2"})
    other = write(tmp_path / "d", "arc", 4.0, embedders={"tagger": "abd"})
    assert main(["compare", old, first, second]) == 0
    assert main(["compare", old, first, other]) == 2
    said = capsys.readouterr().err
    assert f"{other}/results.json: embedders.tagger is abd, but {first}/results.json has abc" in said


def test_similarities_by_two_claps_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, clap: str | None, real: float, value: float | None = 0.4, weights: str | None = None) -> str:
        rows = [row("student", 4, "fast", 5.0, ta_similarity=value, clap_t=value, ra_similarity=value)]
        return write(tmp_path / name, name, 5.0, rows=rows, references={"test_set_ta": real},
                     **({} if clap is None else {"text_audio": clap}),
                     **({} if weights is None else {"text_audio_fingerprint": weights}))

    def heads(*runs: str) -> set[str]:
        caplog.clear()
        assert main(["compare", *runs]) == 0
        return {head.split()[0] for head in printed(capsys)[0][0][0]} & {"ta_similarity", "ra_similarity"}

    own, both = run("own", "bundle_clap", 0.85), {"ta_similarity", "ra_similarity"}
    old, none = run("old", None, 0.85 + 1e-6), run("none", None, 0.0, None)
    edit(none, references={})
    assert heads(own, old, none) == both and "left out" not in caplog.text
    assert heads(own, run("clap", "clap", 0.85)) == set()
    assert "text_audio: bundle_clap, clap" in caplog.text
    # another bundle's CLAP has the same name, and finds the real clips otherwise
    assert heads(own, run("bundle", "bundle_clap", 0.7)) == set() and "0.85, 0.7" in caplog.text
    # where both state a fingerprint it decides, and not the names
    named = run("named", "musiccm-tiny", 0.85, weights="abc")
    assert heads(named, run("path", "/bundles/tiny", 0.85, weights="abc")) == both
    assert heads(named, run("other", "musiccm-tiny", 0.85, weights="abd")) == set()
    assert "musiccm-tiny abc, musiccm-tiny abd" in caplog.text
    # an older run calls `clap` whatever is not its bundle's
    assert heads(named, run("older", "clap", 0.85)) == both
    assert heads(named, own) == set()


def test_runs_that_are_sampled_otherwise_are_no_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runs = [write(tmp_path / f"{n}", "demo", 2.0 + n, sampler={"name": "lcm", "gamma": gamma})
            for n, gamma in enumerate((0.6, 1.0, 0.6))]
    assert main(["compare", *runs]) == 0
    students = [(r["experiment"], r["runs"], r["excess_fd_tagger ↓"]) for r in printed(capsys)[0][0]
                if (r["model"], r["steps"]) == ("student", "4")]
    assert students == [("demo (lcm, gamma 0.6)", "2", "3 ± 1.4"), ("demo (lcm, gamma 1)", "1", "3 [2.7, 3.3]")]
    assert "are not averaged over them" in caplog.text
    assert main(["compare", runs[0], runs[2]]) == 0
    assert {r["experiment"] for r in printed(capsys)[0][0]} == {"demo"}


def test_a_figure_of_fewer_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / name, "demo", at) for name, at in (("a", 13.0), ("b", 26.0), ("c", 39.0))]
    for run, keys in ((runs[0], ["excess_fd_tagger_ratio"]), (runs[1], ["excess_fd_tagger_ratio", "kad_tagger"])):
        rows = json.loads((Path(run) / "results.json").read_text())["rows"]
        edit(run, rows=[found | dict.fromkeys(keys) for found in rows])
    assert main(["compare", *runs]) == 0
    found = next(r for r in printed(capsys)[0][0] if (r["model"], r["steps"]) == ("student", "4"))
    assert found["runs"] == "3" and found["excess_fd_tagger ↓"] == "26 ± 13"
    assert found["excess_fd_tagger x teacher"] == "3 [2.79, 3.25] (1 of 3 runs)"
    assert found["kad_tagger ↓"] == "2.6 ± 1.8 (2 of 3 runs)"


def test_results_given_twice_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = write(tmp_path / "a", "demo", 2.0)
    copy = write(tmp_path / "b", "demo", 2.0)
    (tmp_path / "link").symlink_to(run)
    other = write(tmp_path / "c", "demo", 4.0)
    assert main(["compare", run, f"{run}/results.json", str(tmp_path / "link"), copy, other]) == 0
    found = next(r for r in printed(capsys)[0][0] if (r["model"], r["steps"]) == ("student", "4"))
    assert (found["runs"], found["excess_fd_tagger ↓"]) == ("2", "3 ± 1.4")
    assert caplog.text.count("they count once") == 3


@pytest.mark.parametrize(("changes", "said"), [
    ({"n": None}, "n: expected a number of clips, found none"),
    ({"experiment": None}, "experiment: expected the experiment's name, found none"),
    ({"rows": ["x"]}, "rows[0]: expected an object, found 'x'"),
    ({"rows": {"a": 1}}, "rows: expected a list of rows"),
    ({"rows": [{"steps": 4, "fd_tagger": 1.0}]}, "rows[0].model: expected a model's name, found none"),
    ({"rows": [{"model": "student", "fd_tagger": 1.0}]}, "rows[0].steps: expected a number of steps, found none"),
    ({"rows": [row("student", 4, "fast", 5.0, kad_tagger="low")]}, "rows[0].kad_tagger: expected a number or null"),
    ({"training": [1]}, "training: expected an object, found [1]"),
    ({"training": {"seconds": "long"}}, "training.seconds: expected a number or null, found 'long'"),
    ({"training": {"trajectories": 3}}, "training.trajectories: expected an object, found 3"),
    ({"references": 3}, "references: expected an object, found 3"),
    ({"references": {"acc_mode_real": "x"}}, "references.acc_mode_real: expected a number or null"),
])
def test_what_is_no_results_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    run = write(tmp_path / "a", "lcm", 2.0)
    content = json.loads((tmp_path / "a/results.json").read_text()) | changes
    (tmp_path / "a/results.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    assert main(["compare", run]) == 2
    assert f"{run}/results.json: {said}" in capsys.readouterr().err


def test_training_without_seconds_and_older_rows_without_a_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "a", "lcm", 2.0, training={"device": None, "seconds": None, "steps": 9, "updates": None})
    assert main(["compare", run]) == 0
    tables, text = printed(capsys)
    assert (tables[-1][0]["minutes"], tables[-1][0]["steps"]) == ("-", "9")
    assert "what training took is not stated by lcm" in text
    rows = [{"model": model, "steps": steps, "network_calls": calls, "fd_tagger": fd, "ta_similarity": 0.5}
            for model, steps, calls, fd in (("teacher", 50, 100.0, 20.0), ("teacher", 2, 4.0, None),
                                            ("student", 4, 4.0, 30.0), ("student", 8, 8.0, None))]
    old = write(tmp_path / "b", "old", 1.0, None, rows=[*rows, {"model": "student", "steps": 1, "ta_similarity": 0.1}])
    assert main(["compare", old]) == 0
    found = {(r["model"], r["steps"]): r["x most steps"] for r in printed(capsys)[0][0]}
    assert found == {("teacher", "50"): "1", ("teacher", "2"): "-", ("student", "4"): "1.5", ("student", "8"): "-",
                     ("student", "1"): "-"}
