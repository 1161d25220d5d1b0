"""Ended at any step, by kill -9 or by a signal that may be answered: the same command again gives the same weights."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

from musiccm.locks import LOCK, holder

from .conftest import ACCIDENTS, World, accident, checkpoints, differences

pytestmark = pytest.mark.e2e

STEPS, EVERY = 11, 3  # epochs of four batches
# Before the first save, between two saves, while one is written, and in the last step, behind which there is nothing
# left to train. Signals that may be answered are sent in tests/e2e/test_ends.py, too.
ENDED_AT = [("SIGKILL", 8, ""), ("SIGKILL", 6, ":write"),
            *(pytest.param(*ended, "", marks=pytest.mark.slow)
              for ended in (("SIGKILL", 2), ("SIGTERM", 5), ("SIGTERM", STEPS)))]
PARTS = ("global_step", "epoch", "batches_seen", "state_dict", "optimizer_states")


@pytest.fixture(scope="module")
def experiment(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    return world.experiment(folder, "killed", [checkpoints(EVERY), *accident()], max_steps=STEPS, val_check_interval=4)


@pytest.fixture(scope="module")
def undisturbed(experiment: Path, start_once: Callable[..., Any]) -> dict:
    folder = experiment.parent / "whole"
    folder.mkdir()
    process = start_once(["fit", "--config", str(experiment), "--ckpt_path", "auto"], folder, ACCIDENTS)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return torch.load(folder / "final.ckpt", weights_only=True)


def last_checkpoint(folder: Path) -> Path:
    return folder / "lightning_logs" / "killed" / "version_0" / "checkpoints" / "last.ckpt"


def half_files(folder: Path) -> list[Path]:
    """What a run that was ended has left; a lock file that nobody holds may stay where no run goes on."""
    return [path for path in folder.rglob(".musiccm*") if path.name != LOCK or holder(path)]


def goes_on(
    start: Callable[..., Any], command: list[str], folder: Path, undisturbed: dict[str, Any]
) -> dict[str, Any]:
    """Run the same command again; it ends with the weights, averages and moments of the run that nothing disturbed."""
    resumed = start(command, folder, ACCIDENTS)
    printed, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, printed
    assert not half_files(folder)
    # Where there was no step left to make, Lightning neither calls `on_train_end` nor ends the epoch.
    final = folder / "final.ckpt"
    ended = final.exists()
    found = torch.load(final if ended else last_checkpoint(folder), weights_only=True)
    for part in PARTS:
        if part == "epoch" and not ended:
            continue
        assert differences(undisturbed[part], found[part], part) == []
    return found


@pytest.mark.parametrize(("way", "step", "place"), ENDED_AT)
def test_a_run_ended_at_any_step_goes_on_to_the_same_weights(
    experiment: Path, undisturbed: dict, tmp_path: Path, start: Callable[..., Any], way: str, step: int, place: str
) -> None:
    command = ["fit", "--config", str(experiment), "--ckpt_path", "auto"]
    ended = start(command, tmp_path, ACCIDENTS, ACCIDENT=f"{way}:{step}:0{place}")
    printed, _ = ended.communicate(timeout=600)
    assert not (tmp_path / "final.ckpt").exists()
    last = last_checkpoint(tmp_path)
    if way == "SIGKILL":
        assert ended.returncode == -signal.SIGKILL, printed
        saved_at = (step - 1) // EVERY * EVERY
    else:
        # The step that the signal fell into is made, saved, and the code is that of a temporary failure.
        assert ended.returncode == 75, printed
        assert f"{way} received: saved" in printed and f"at step {step}; exit code 75" in printed
        assert "Traceback" not in printed
        saved_at = step
    assert last.exists() == (saved_at > 0) and bool(half_files(tmp_path)) == (place == ":write")
    before = torch.load(last, weights_only=True) if saved_at else None
    assert before is None or before["global_step"] == saved_at

    found = goes_on(start, command, tmp_path, undisturbed)
    assert found["global_step"] == found["batches_seen"] == STEPS
    names = {name.split(".")[0] for name in found["state_dict"]}
    assert names == {"student", "student_ema_target", "student_ema_slow", "discriminator"}
    if before is not None and saved_at < STEPS:
        # Not for want of movement: the two players and both averages have all left the place they were resumed from.
        moved = differences(before["state_dict"], found["state_dict"])
        assert {place.strip("/").split(".")[0] for place in moved} == names
        assert [p.name for p in (tmp_path / "lightning_logs" / "killed").iterdir()] == ["version_0"]


def saves_seen(path: Path, running: forked.Command, count: int) -> list[float]:
    """Waits until a checkpoint has been written so often; returns when each was seen, in seconds."""
    seen: list[float] = []
    last, until = 0, time.monotonic() + 600
    while len(seen) < count:
        assert running.poll() is None and time.monotonic() < until, "the run ended, or never saved"
        changed = path.stat().st_mtime_ns if path.exists() else 0
        if changed != last:
            last = changed
            seen.append(time.monotonic())
        time.sleep(0.002)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_from_outside_at_any_moment_goes_on_to_the_same_weights(
    world: World, undisturbed: dict, tmp_path: Path, start: Callable[..., Any], seed: int
) -> None:
    """Not between two batches but at some time after some save: in a step, or while a checkpoint is written.

    Every step is saved, so that much of the time goes to writing. What must hold does not depend on the moment, which
    no seed can fix.
    """
    chance = random.Random(seed)
    callbacks = [checkpoints(1), *accident()]
    config = world.experiment(tmp_path, "killed", callbacks, max_steps=STEPS, val_check_interval=4)
    command = ["fit", "--config", str(config), "--ckpt_path", "auto"]
    last = last_checkpoint(tmp_path)
    running = start(command, tmp_path, ACCIDENTS)
    seen = saves_seen(last, running, chance.randint(2, 7))
    delay_s = chance.uniform(0, seen[-1] - seen[-2])
    time.sleep(delay_s)
    running.kill()
    printed, _ = running.communicate(timeout=60)
    print(f"killed {delay_s:.3f} s after save {len(seen)}")
    assert running.returncode == -signal.SIGKILL and not (tmp_path / "final.ckpt").exists(), printed
    saved_at = torch.load(last, weights_only=True)["global_step"]
    assert 0 < saved_at < STEPS

    goes_on(start, command, tmp_path, undisturbed)
