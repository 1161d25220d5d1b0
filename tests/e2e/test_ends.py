"""Commands that a signal ends in the middle: soon, with what is done kept, and the same command goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musiccm import cli

from .conftest import ACCIDENTS, World, accident, checkpoints, differences, evaluation

pytestmark = pytest.mark.e2e

STEPS, PARTS = 5, ("global_step", "epoch", "batches_seen", "state_dict", "optimizer_states")


@pytest.fixture(scope="module")
def experiment(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    callbacks = [*accident(), checkpoints(3), evaluation(shipped_student=None), {"class_path": "accidents.Validated"}]
    # Epochs of four batches: a validation within one, and one at its end.
    return world.experiment(folder, "ended", callbacks, max_steps=STEPS, val_check_interval=2)


def fit(experiment: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str = "none:-1:0") -> int:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ACCIDENTS)
    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    monkeypatch.setenv("ACCIDENT", what)
    return cli.main(["fit", "--config", str(experiment), "--ckpt_path", "auto"])


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> dict[str, Any]:
    folder = experiment.parent / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert fit(experiment, folder, monkeypatch) == 0
    return {"validated": (folder / "validated").read_text(), **torch.load(folder / "final.ckpt", weights_only=True)}


@pytest.mark.parametrize("what", [
    "SIGTERM:2:0:validation", "SIGUSR1:4:0:validation", "SIGTERM:4:0:evaluation", "SIGINT:2:0:evaluation",
    "SIGTERM:2:0", "SIGUSR1:4:0", "SIGINT:3:0",
])
def test_a_run_told_to_leave_in_or_before_a_validation_makes_it_then_and_goes_on_to_the_same_bits(
    experiment: Path, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], what: str,
) -> None:
    name, step, *_ = what.split(":")
    assert fit(experiment, tmp_path, monkeypatch, what) == (130 if name == "SIGINT" else 75)
    shown = capsys.readouterr()
    assert f"{name} received: saved" in shown.out and f"at step {step};" in shown.out
    assert "Traceback" not in shown.err + shown.out and shown.out.count("received") == 1
    last = tmp_path / "lightning_logs" / "ended" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == int(step)
    assert not (tmp_path / "final.ckpt").exists()
    done = [line.split()[0] for line in (tmp_path / "validated").read_text().splitlines()] if (
        tmp_path / "validated").exists() else []
    assert done == [str(n) for n in range(2, int(step), 2)]

    assert fit(experiment, tmp_path, monkeypatch) == 0
    assert ("is made now" in capsys.readouterr().out) == (step != "3")
    found = torch.load(tmp_path / "final.ckpt", weights_only=True)
    for part in PARTS:
        assert differences(undisturbed[part], found[part], part) == []
    assert (tmp_path / "validated").read_text() == undisturbed["validated"]
