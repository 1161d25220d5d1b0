"""Whose weights a results.json was measured on: with checkpoints that Lightning writes, and what stands in results."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from musiccm.callbacks.training_time import TrainingTime, training_record
from musiccm.commands._measured_on import measured_elsewhere
from musiccm.commands.export import read_results
from musiccm.errors import MusiccmError


class System(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(0.005)  # a student's step takes longer
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(run: Path, steps: int, begun: Path | None = None) -> Path:
    saver = ModelCheckpoint(run / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[TrainingTime(), saver])
    trainer.fit(System(), DataLoader(range(9)), ckpt_path=begun)
    return run / "checkpoints" / f"step={steps}.ckpt"


def results_of(tested: Path, **changes: Any) -> dict[str, Any]:
    """What a test of a checkpoint writes."""
    trainer: Any = SimpleNamespace(ckpt_path=tested, state=SimpleNamespace(fn=TrainerFn.TESTING))
    return {"rows": [{"model": "student", "steps": 4, "fd_tagger": 1.0}], "sampler": {"name": "lcm", "gamma": 0.6},
            "checkpoint": str(tested), "training": training_record(trainer, System())} | changes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one experiment, and one that went on."""
    folder = tmp_path_factory.mktemp("lightning_logs") / "x"
    for version in (0, 1):
        fit(folder / f"version_{version}", 2)
    fit(folder / "version_0", 3, folder / "version_0/checkpoints/step=2.ckpt")
    return folder


def older(checkpoint: Path, to: Path, clock: bool = True) -> Path:
    """The same without what a version before this one did not write."""
    content = torch.load(checkpoint, weights_only=False)
    if not clock:
        content["callbacks"].pop("TrainingTime")
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, to)
    return to


def test_the_same_weights_under_any_name(runs: Path, tmp_path: Path) -> None:
    two = runs / "version_0/checkpoints/step=2.ckpt"
    assert measured_elsewhere(results_of(two), two) is None
    moved = tmp_path / "kept/checkpoints/last.ckpt"
    moved.parent.mkdir(parents=True)
    shutil.copy(two, moved)
    assert measured_elsewhere(results_of(two), moved) is None
    live = results_of(two, checkpoint=None)  # a test right behind the training, whose weights were in memory
    assert measured_elsewhere(live, two) is None


def test_another_step_and_another_run_are_told(runs: Path) -> None:
    two, three = (runs / f"version_0/checkpoints/step={step}.ckpt" for step in (2, 3))
    other = runs / "version_1/checkpoints/step=2.ckpt"
    assert measured_elsewhere(results_of(two), three) == f"at step 2 ({two}), and {three} is at step 3"
    longer = results_of(two)
    longer["training"]["seconds"] += 1  # of no two trainings as short as these can it be told otherwise
    assert f"of training ({two}), and {other} has" in str(measured_elsewhere(longer, other))
    assert measured_elsewhere(results_of(two, checkpoint=None), three) == f"at step 2, and {three} is at step 3"
    # results that call updates steps, here with a critic's, are told by their seconds
    before = results_of(two)
    del before["training"]["updates"]
    before["training"]["steps"] = 380
    assert measured_elsewhere(before, two) is None
    before["training"]["seconds"] += 1
    assert "of training" in str(measured_elsewhere(before, three))


def test_without_times_the_run_and_the_file_decide(runs: Path, tmp_path: Path) -> None:
    path = older(runs / "version_0/checkpoints/step=2.ckpt", tmp_path / "x/version_0/checkpoints/last.ckpt", False)
    stated = "lightning_logs/x/version_0/checkpoints/last.ckpt"  # from a folder that is not this one
    bare = {"rows": [], "checkpoint": stated}
    assert measured_elsewhere(bare, path) is None
    for other in (stated.replace("version_0", "version_1"), stated.replace("last", "step=1")):
        assert measured_elsewhere(bare | {"checkpoint": other}, path) == f"on {other}, and this is {path}"
    # its step is known where this version tests it: then another name of the file is no matter
    now = results_of(path, checkpoint=stated.replace("last", "step=2"))
    assert now["training"]["seconds"] is None and measured_elsewhere(now, path) is None
    assert "version_7" in str(measured_elsewhere(now | {"checkpoint": stated.replace("_0", "_7")}, path))
    # versions that state neither
    assert measured_elsewhere({"rows": [], "gamma": 0.5}, path) is None


def test_others_results_are_refused_or_left_out(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two, three = (runs / f"version_0/checkpoints/step={step}.ckpt" for step in (2, 3))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_of(two)))
    rows, sampler, _ = read_results(path, True, two)
    assert [row["fd_tagger"] for row in rows] == [1.0] and sampler == {"name": "lcm", "gamma": 0.6}
    with pytest.raises(MusiccmError, match=r"--results .*results.json: measured at step 2 .* is at step 3; name the"):
        read_results(path, True, three)
    with caplog.at_level(logging.WARNING):
        assert read_results(path, False, three) == ([], {"name": "lcm", "gamma": 1.0}, [])
    assert caplog.text.count("is left out, as is its sampler: it was measured at step 2") == 1
