"""What `fit`, `validate` and `test` say of a run: numbers that are those of its files."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from musiccm.commands._run_words import closing_words, metric_lines, opening_words, unfinished


def test_closing_words_state_the_bytes_of_each_part_and_a_command_that_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("lightning_logs/a name/version_3")
    (folder / "checkpoints").mkdir(parents=True)
    moments = {"state": {n: {"exp_avg": torch.zeros(1_000_000), "exp_avg_sq": torch.zeros(1_000_000)} for n in (0, 1)}}
    checkpoint = folder / "checkpoints/last.ckpt"
    torch.save({"optimizer_states": [moments], "state_dict": {"student.a": torch.zeros(3_000_000, dtype=torch.half),
                                                              "ema.a": torch.zeros(500_000)}}, checkpoint)
    (folder / "sound.wav").write_bytes(bytes(5_000_000))
    words = closing_words(folder, checkpoint.absolute())
    assert f"{folder}: 29 MB, of which last.ckpt 24 MB: networks 8.0 MB, optimizers 16 MB." in words
    (command,) = [line for line in words.splitlines() if "musiccm export" in line]
    assert shlex.split(command) == ["musiccm", "export", "--checkpoint", str(checkpoint), "--out", "a name-student"]


def trainer(**options: Any) -> Any:
    defaults = {"max_steps": 8, "global_step": 8, "world_size": 1, "strategy": SimpleNamespace(root_device="cpu")}
    return SimpleNamespace(**defaults | options)


def test_opening_words_count_what_is_trained() -> None:
    model: Any = nn.Module()
    model.student, model.frozen = nn.Linear(3, 4), nn.Linear(5, 5).requires_grad_(False)
    assert opening_words("fit", trainer(), model, None) == "fit: Module on cpu, trains student 16 parameters"
    assert opening_words("test", trainer(world_size=2), model, "a.ckpt") == "test: Module on 2 x cpu, from a.ckpt"


def test_a_run_that_ended_early_says_so() -> None:
    assert unfinished(trainer()) is None and unfinished(trainer(max_steps=-1)) is None
    assert "step 5 of 8" in (unfinished(trainer(global_step=5)) or "")


def test_metrics_are_lines() -> None:
    assert metric_lines({"val/b": torch.tensor(0.5), "val/a": 2.0}) == ["val/a 2", "val/b 0.5"]
