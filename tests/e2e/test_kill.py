"""kill -9 in the middle of a run, then the same command again: the weights are those of an undisturbed run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import World, checkpoints, evaluation

pytestmark = pytest.mark.e2e

STEPS, EVERY, KILLED_AT = 11, 3, 7  # epochs of four batches: killed in the second, one step after a checkpoint
KILLER = """
import os, signal
from pytorch_lightning import Callback

class Killer(Callback):
    def on_train_batch_end(self, trainer, *_):
        if str(trainer.global_step) == os.environ.get("KILL_AT_STEP"):
            os.kill(os.getpid(), signal.SIGKILL)

class SaveAtEnd(Callback):
    def on_train_end(self, trainer, *_):
        trainer.save_checkpoint("final.ckpt")
"""


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places at which two nested structures differ by as much as one bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [place for key in a for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i, (x, y) in enumerate(zip(a, b, strict=True)) for place in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


def test_a_killed_run_goes_on_to_the_same_weights(world: World, tmp_path: Path, start: Callable[..., Any]) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    callbacks = [checkpoints(EVERY), evaluation(shipped_student=None),
                 {"class_path": "killer.Killer"}, {"class_path": "killer.SaveAtEnd"}]
    path = world.experiment(tmp_path, "killed", callbacks, max_steps=STEPS, val_check_interval=4)
    command = ["fit", "--config", str(path), "--ckpt_path", "auto"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()

    undisturbed = start(command, whole, tmp_path)
    killed = start(command, broken, tmp_path, KILL_AT_STEP=str(KILLED_AT))
    printed, _ = killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL, printed
    assert not (broken / "final.ckpt").exists()
    last = broken / "lightning_logs" / "killed" / "version_0" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)
    assert before["global_step"] == KILLED_AT // EVERY * EVERY

    resumed = start(command, broken, tmp_path)
    for process in (undisturbed, resumed):
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
    expected, found = (torch.load(folder / "final.ckpt", weights_only=True) for folder in (whole, broken))
    for part in ("global_step", "epoch", "batches_seen", "state_dict", "optimizer_states"):
        assert differences(expected[part], found[part], part) == []
    assert expected["global_step"] == expected["batches_seen"] == STEPS
    names = {name.split(".")[0] for name in expected["state_dict"]}
    assert names == {"student", "student_ema_target", "student_ema_slow", "discriminator"}
    # Not for want of movement: the two players and both averages have all left the place they were resumed from.
    moved = differences(before["state_dict"], found["state_dict"])
    assert {place.strip("/").split(".")[0] for place in moved} == names
    assert [p.name for p in (broken / "lightning_logs" / "killed").iterdir()] == ["version_0"]
