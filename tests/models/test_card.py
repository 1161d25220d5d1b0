"""Cards show the headline figures with their intervals, and what only programs need stays out of them."""

from __future__ import annotations

from pathlib import Path

from musiccm.commands._bundle_card import card as bundle_card
from musiccm.models.bundle.card import results_table, write_card

ROW = {"model": "student", "steps": 4, "decoder": "fast", "sampler": "lcm, gamma 1", "network_calls": 4.0,
       "fd_tagger": 13.0, "floor_fd_tagger": 4.0, "excess_fd_tagger": 9.0, "excess_fd_tagger_low": 8.25,
       "excess_fd_tagger_high": 9.75, "excess_fd_tagger_bias": 0.125, "excess_fd_tagger_ratio": 0.75,
       "excess_fd_tagger_ratio_low": 0.701, "excess_fd_tagger_ratio_high": 0.812,
       "kad_tagger_ratio": None, "kad_tagger_ratio_low": None, "kad_tagger_ratio_high": None,
       "kad_tagger_ratio_why": "the denominator is not clearly above 0", "equal_calls_teacher": "teacher_dpm@4",
       "excess_fd_tagger_equal_calls_teacher": "teacher_dpm@4", "draws_tagger": 200, "n": 2048}
RECORD = {"timesteps": list(range(19, 1000, 20)), "sampling_steps": [1, 2, 4], "default_steps": 4,
          "guidance_scale": 3.0, "num_train_timesteps": 1000, "sampler": {"name": "lcm", "gamma": 1.0}}


def cells(text: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_number_and_its_interval_are_one_cell() -> None:
    (shown,) = cells(results_table([ROW]))
    assert shown == {
        "model": "student", "steps": "4", "decoder": "fast", "sampler": "lcm, gamma 1", "network_calls": "4",
        "fd_tagger": "13", "floor_fd_tagger": "4", "excess_fd_tagger": "9 [8.25, 9.75]",
        "excess_fd_tagger_ratio": "0.75 [0.701, 0.812]", "kad_tagger_ratio": "", "equal_calls_teacher": "teacher_dpm@4",
        "n": "2048"}


def test_the_card_of_a_student_says_what_its_ratios_are(tmp_path: Path) -> None:
    for name, rows in (("new", [ROW]), ("old", [{"model": "student", "decoder": "original", "fd_tagger": 26.0}])):
        write_card(tmp_path / name, "x", RECORD, rows, (4, 4, 4))
    new, old = ((tmp_path / name).read_text() for name in ("new", "old"))
    assert "| 0.75 [0.701, 0.812] |" in new and "brackets hold 95 % intervals" in new
    assert "| student | original | 26 |" in old and "brackets" not in old


def test_the_card_of_a_bundle_shows_all_configurations_of_the_teacher_and_the_floor() -> None:
    rows = [ROW, {**ROW, "model": "teacher_dpm", "steps": 8}, {**ROW, "model": "teacher", "steps": 50},
            {"model": "floor", "steps": 0, "decoder": "fast", "fd_tagger": 4.0, "n": 2048}]
    quality = {"stages": {}, "corpus": {"measured_on": "test"}, "missing": [], "figures": {}, "tolerance": 0.01,
               "precision": {}, "machine": {}}
    text = bundle_card("tiny", quality, rows).split("## Teacher")[1].split("## Packed on")[0]
    shown = cells(text)
    assert [(row["model"], row["steps"]) for row in shown] == [("teacher_dpm", "8"), ("teacher", "50"), ("floor", "0")]
    assert shown[1]["excess_fd_tagger"] == "9 [8.25, 9.75]" and shown[2]["fd_tagger"] == "4"
    assert "`floor`: what real renderings come to" in text
