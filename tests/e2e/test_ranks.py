"""Two processes: what befalls one ends or moves both, and their evaluation is that of one process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musiccm import cli

from .conftest import ACCIDENTS, World, accident, checkpoints, evaluation

pytestmark = pytest.mark.e2e

PARALLEL = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
Run = Callable[..., tuple[list[int], list[str]]]


@pytest.fixture
def config(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(ACCIDENTS)
    judged = evaluation(packaged_student=None, cache_dir=None)
    return world.experiment(here, "pair", [checkpoints(1), judged, *accident()], max_steps=6, limit_val_batches=0)


def steps_saved(folder: Path) -> int:
    last = folder / "lightning_logs" / "pair" / "version_0" / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["global_step"]


def test_one_process_killed_ends_the_other_with_a_message(
    config: Path, here: Path, torchrun: Callable[..., Any]
) -> None:
    command = ["fit", "--config", str(config), *PARALLEL, "--allow-import", "accidents"]
    process = torchrun(2, command, here, ACCIDENTS, ACCIDENT="SIGKILL:4:1")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode != 0 and "exitcode  : -9" in printed, printed
    lost = "another process of this run has ended" in printed and "--ckpt_path auto" in printed
    assert lost or "ended by SIGTERM; run the same command again" in printed, printed  # torchrun may be sooner
    assert steps_saved(here) == 3
    # The last sign of life before the accident is the checkpoint.
    last = here / "lightning_logs" / "pair" / "version_0" / "checkpoints" / "last.ckpt"
    assert time.time() - last.stat().st_mtime < 60


def test_a_signal_to_one_process_in_a_validation_lets_both_leave_it(
    config: Path, here: Path, side_by_side: Run
) -> None:
    command = ["fit", "--config", str(config), *PARALLEL, "--trainer.limit_val_batches", "1.0"]
    codes, printed = side_by_side(2, [*command, "--trainer.val_check_interval", "2"], here, ACCIDENTS,
                                  ACCIDENT="SIGTERM:2:1:validation")
    assert codes == [75, 75], printed
    assert "another process' signal received: saved" in printed[0] and "at step 2; exit code 75" in printed[0]
    assert steps_saved(here) == 2


def test_a_loss_that_is_not_finite_on_one_process_stops_both(config: Path, here: Path, side_by_side: Run) -> None:
    codes, printed = side_by_side(2, ["fit", "--config", str(config), *PARALLEL], here, ACCIDENTS, ACCIDENT="NAN:3:1")
    assert codes == [2, 2], printed
    said = [line for each in printed for line in each.splitlines() if "training has diverged" in line]
    assert len(said) == 2 and said[0] == said[1], printed
    assert "loss is nan at step 3" in said[0] and "(process 1)" in said[0] and "(process 0)" not in said[0]
    assert said[0].count("train_") == 8, "the clips of one process' batch"
    assert "last.ckpt (step 2)" in said[0] and steps_saved(here) == 2


def test_a_signal_to_one_process_saves_both_and_their_table_is_that_of_one_process(
    config: Path, here: Path, side_by_side: Run
) -> None:
    fitting = ["fit", "--config", str(config), *PARALLEL]
    codes, printed = side_by_side(2, fitting, here, ACCIDENTS, ACCIDENT="SIGUSR1:3:1")
    assert codes == [75, 75], printed
    assert "another process' signal received: saved" in printed[0] and "at step 4; exit code 75" in printed[0]
    assert steps_saved(here) == 4, "agreed on one step later"

    def table() -> dict[str, Any]:
        return json.loads((here / "lightning_logs" / "pair" / "version_0" / "results.json").read_text())

    testing = ["test", "--config", str(config), "--ckpt_path", "newest"]
    codes, printed = side_by_side(2, [*testing, *PARALLEL], here, ACCIDENTS)
    assert codes == [0, 0], printed
    two = table()
    assert cli.main([*testing, "--allow-import", "accidents"]) == 0
    one = table()
    assert one["n"] == two["n"]
    for mine, theirs in zip(two["rows"], one["rows"], strict=True):
        for key in (key for key in theirs if not key.startswith("latency")):
            same = theirs[key] is None or isinstance(theirs[key], str)
            assert mine[key] == (theirs[key] if same else pytest.approx(theirs[key], rel=1e-4, abs=1e-7)), key
