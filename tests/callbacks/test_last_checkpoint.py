"""A run that a signal ended before its first save goes on in the file that the signal left."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from musiccm import signals
from musiccm.callbacks.last_checkpoint import LastStep
from musiccm.callbacks.preemption import Preemption


class Line(LightningModule):
    """One weight that falls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Signalled(Callback):
    """Is sent SIGINT in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def fit(folder: Path, steps: int, every: int, interrupted: int = 0, goes_on: bool = False) -> None:
    saver = ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=0, save_last=True)
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=folder,
                      callbacks=[*([Signalled(interrupted)] if interrupted else []), saver])
    trainer.callbacks += [LastStep(), Preemption()]
    batches = DataLoader([torch.zeros(1)] * 20, batch_size=None)
    trainer.fit(Line(), batches, ckpt_path=str(folder / "last.ckpt") if goes_on else None)


def saved(folder: Path) -> dict[str, int]:
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


@pytest.mark.parametrize("moved", [False, True])
def test_there_is_one_last_checkpoint_and_it_is_the_newest(tmp_path, moved):
    folder = tmp_path / "run"
    with pytest.raises(signals.Ended):
        fit(folder, 9, every=100, interrupted=3)
    assert saved(folder) == {"last.ckpt": 3}
    if moved:
        folder = Path(shutil.move(folder, tmp_path / "elsewhere"))
    with pytest.raises(signals.Ended):
        fit(folder, 9, every=2, interrupted=7, goes_on=True)
    assert saved(folder) == {"last.ckpt": 7}
    fit(folder, 9, every=2, goes_on=True)
    assert saved(folder) == {"last.ckpt": 9}


def test_a_run_that_starts_from_another_file_leaves_it_alone(tmp_path):
    fit(tmp_path / "first", 3, every=1)
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first/last.ckpt", tmp_path / "second/last.ckpt")
    saver = ModelCheckpoint(tmp_path / "first", every_n_train_steps=1, save_top_k=0, save_last=True)
    trainer = Trainer(max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path, callbacks=[saver, LastStep()])
    trainer.ckpt_path = str(tmp_path / "second/last.ckpt")
    LastStep().on_train_start(trainer, Line())
    assert saver.last_model_path == ""
    trainer.ckpt_path = str(tmp_path / "second/../first/last.ckpt")
    LastStep().on_train_start(trainer, Line())
    assert saver.last_model_path == str(tmp_path / "first/last.ckpt")
