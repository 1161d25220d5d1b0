"""`musiccm tables --protocol melody`: whose figures stand where, and what is said where there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from musiccm.cli import main
from musiccm.evaluation.candidates import MODELS
from musiccm.evaluation.paper_tables import PAPERS

ROWS = [("floor", 0, 10.0, None), ("teacher_lm_uniform", 10, 31.5, 20), ("teacher_lm_proposed", 5, 33.25, 10),
        ("teacher_oracle_proposed", 10, 14.75, 20), ("student", 4, 34.5, 4)]


def write_run(runs: Path, experiment: str, rows: list[tuple[str, int, float, int | None]], n: int = 8) -> Path:
    path = runs / experiment / "version_0" / "results.json"
    path.parent.mkdir(parents=True)
    content = {"schema": 1, "experiment": experiment, "n": n, "embedders": {"tagger": "abc"},
               "machine": {"device": "a processor", "threads": 2}, "rows": [
                   {"model": model, "steps": steps, "decoder": "original", "fd_tagger": fd, "ta_similarity": 0.5,
                    "excess_fd_tagger": fd - 10, "network_calls": calls, "latency_s": 1.25 if calls else None, "n": n}
                   for model, steps, fd, calls in rows]}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Path]:
    for name in ("melody_rows", "demo", "few"):
        (tmp_path / f"{name}.yaml").write_text("trainer: {max_steps: 1}\n")
    runs = tmp_path / "runs"
    results = write_run(runs, "melody_rows", ROWS)
    write_run(runs, "demo", [("teacher", 50, 12.5, 100), ("student", 4, 13.0, 4)])
    write_run(runs, "few", [("student", 4, 13.0, 4)], n=4)
    quality = tmp_path / "bundle" / "quality"
    quality.mkdir(parents=True)
    for stage, mse in (("dual_path", 0.31), ("unet", 0.36)):
        (quality / f"{stage}.json").write_text(json.dumps({"stage": stage, "steps": 900, "n": 64, "mse": mse,
                                                           "si_snri": 20 * mse, "parameters": 5_000_000}))
    return {"runs": runs, "bundle": tmp_path / "bundle", "results": results,
            **{name: tmp_path / f"{name}.yaml" for name in ("melody_rows", "demo", "few")}}


def tables(world: dict[str, Path], *more: str, config: str = "melody_rows") -> int:
    return main(["tables", "--protocol", "melody", "--config", str(world[config]), "--runs", str(world["runs"]), *more])


def line(text: str, *cells: str) -> dict[str, str]:
    """The cells by head, of the line that begins with some."""
    heads: list[str] = []
    for row in text.splitlines():
        found = [cell.strip() for cell in row.split("|")[1:-1]]
        if not row.startswith("|") or set(row) <= set("|-"):
            heads = heads if row.startswith("|") else []
        elif not heads:
            heads = found
        elif found[: len(cells)] == list(cells):
            return dict(zip(heads, found, strict=True))
    raise AssertionError(f"no line {cells} in\n{text}")


def test_figures_of_both_stand_side_by_side(world: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert tables(world, "--bundle", str(world["bundle"]), "--beside", str(world["demo"])) == 0
    text = capsys.readouterr().out
    both = line(text, "language model's", "uniform", "10")
    ours = [both[f"ours: {head}"] for head in ("FD ↓", "FD above the floor ↓", "network calls")]
    assert ours == ["31.5", "21.5", "20"]
    assert (both["theirs: FAD ↓"], both["theirs: MCC ↑"]) == ("8.52", "0.45")
    # what they did not measure, and what we did not
    five = line(text, "language model's", "uniform", "5")
    assert (five["theirs: FAD ↓"], five["theirs: MCC ↑"], five["ours: FD ↓"]) == ("not known", "not known", "-")
    oracle = line(text, "the real clip's", "proposed", "10")
    assert (oracle["ours: FD ↓"], oracle["theirs: FAD ↓"]) == ("14.75", "not known")
    assert line(text, "real clips")["theirs: MCC ↑"] == "0.43" and line(text, "real clips")["ours: FD ↓"] == "10"
    assert "teacher_lm_uniform@5, " in text and "no such rows in the run (`musiccm test --config melody/rows`" in text
    # rows that the paper has no line for, and MusicCM's on the same clips
    assert line(text, "student@4")["ours: FD ↓"] == "34.5" and text.count("| student@4 ") == 1
    assert line(text, "demo: student@4")["ours: FD ↓"] == "13"
    speed = line(text, "5")
    assert (speed["ours: s a clip, all in all"], speed["theirs: CPU, samples/s"]) == ("1.25", "1472")
    dual, unet, flat = (line(text, name) for name in ("dual path", "U-Net, 1-D", "U-Net, 2-D"))
    assert (dual["ours: velocity error ↓"], dual["theirs: velocity error ↓"]) == ("0.31", "0.12")
    assert (unet["ours: SI-SNRi, dB ↑"], unet["theirs: SI-SNRi, dB ↑"], unet["ours: n"]) == ("7.2", "5.33", "64")
    assert (flat["ours: velocity error ↓"], flat["theirs: SI-SNRi, dB ↑"]) == ("-", "4.96")
    assert line(text, "Noise2Music")["theirs: quality"] == "56.4"
    assert "others than ours" in text and "timed on a processor, 2 threads" in text
    assert world["results"].with_name("tables-melody.md").read_text() == text


def test_a_packed_bundle_has_its_records_in_one_file(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "quality.json").write_text(json.dumps({"stages": {"dual_path": {"mse": 0.25, "n": 9}}}))
    assert tables(world, "--bundle", str(tmp_path / "packed")) == 0
    text = capsys.readouterr().out
    assert line(text, "dual path")["ours: velocity error ↓"] == "0.25"
    assert "- unet: not measured, or no record named by --bundle" in text


@pytest.mark.parametrize(("more", "message"), [
    (["--generated", "x"], "--generated: has no part in --protocol melody"),
    (["--beside", "few"], "n = 4, but .* has fd_tagger on n = 8"),
    (["--bundle", "runs"], "expected quality.json or quality/.*, found none"),
])
def test_what_cannot_stand_there_is_refused(
    world: dict[str, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables(world, *(str(world.get(value, value)) for value in more)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_names_and_options_of_other_protocols(world: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--protocol", "melody"]) == 2
    assert "--config: expected the experiment whose run --protocol melody lays out" in capsys.readouterr().err
    assert main(["tables", "--protocol", "x", "--config", "demo"]) == 2
    assert "--protocol: expected one of consistencytta, melody, found 'x'" in capsys.readouterr().err
    assert main(["tables", "--protocol", "consistencytta", "--config", "demo", "--beside", "demo"]) == 2
    assert "--beside: goes with --protocol melody alone" in capsys.readouterr().err
    assert main(["tables", "--config", "demo", "--beside", "demo"]) == 2
    assert "--beside: only goes with --protocol" in capsys.readouterr().err


def test_every_row_that_it_names_can_be_made_and_every_line_is_whole() -> None:
    named: list[Any] = []
    for table in PAPERS["melody"].tables:
        for found in table.lines:
            assert len(found.said) == len(table.heads) and len(found.theirs) == len(table.theirs)
            named += [found.ours] if table.of == "rows" and found.ours else []
    assert {label.partition("@")[0] for label in named} <= set(MODELS)
    assert len({label for label in named if label.startswith("teacher")}) == 12
