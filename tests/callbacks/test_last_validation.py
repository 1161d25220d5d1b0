"""A run that validates has its last figures of its last step, each validation once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from musiccm.callbacks.last_checkpoint import LastStep
from musiccm.callbacks.last_validation import LastValidation
from musiccm.callbacks.preemption import Preemption


class Line(LightningModule):
    """One weight that falls, and the steps at which it was validated."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.validated: list[int] = []
        self.automatic_optimization = not by_hand

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net.weight.sum()
        if not self.automatic_optimization and batch_idx % 2:  # a step of two batches
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append(self.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, line: Line, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    batches = DataLoader([torch.zeros(1)] * 7, batch_size=None)
    saver = ModelCheckpoint(folder, every_n_train_steps=100, save_top_k=0, save_last=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      default_root_dir=folder, callbacks=[saver], **{"check_val_every_n_epoch": None, **options})
    trainer.callbacks += [LastValidation(), LastStep(), Preemption()]  # as `musiccm fit` has them
    trainer.fit(line, batches, batches, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(("options", "by_hand", "expected"), [
    ({"max_steps": 5, "val_check_interval": 2}, False, [2, 4, 5]),
    ({"max_steps": 10, "val_check_interval": 3}, False, [3, 6, 9, 10]),
    ({"max_steps": 4, "val_check_interval": 2}, False, [2, 4]),
    ({"max_steps": 5, "val_check_interval": 5}, False, [5]),
    ({"max_steps": 5, "val_check_interval": 6}, False, []),
    ({"max_steps": 5, "val_check_interval": 2, "limit_val_batches": 0}, False, []),
    ({"max_epochs": 2, "val_check_interval": 4}, False, [4, 8, 12, 14]),
    ({"max_epochs": 2, "check_val_every_n_epoch": 1}, False, [7, 14]),
    ({"max_steps": 9, "check_val_every_n_epoch": 1}, False, [7, 9]),
    ({"max_steps": 3, "val_check_interval": 4}, True, [2, 3]),
])
def test_the_last_figures_are_of_the_last_step(
    tmp_path: Path, options: dict[str, Any], by_hand: bool, expected: list[int]
) -> None:
    line = Line(by_hand)
    trainer = fit(tmp_path, line, **options)
    assert line.validated == expected
    assert trainer.global_step == options.get("max_steps", 14)


def test_a_run_that_goes_on_knows_that_it_validates(tmp_path: Path) -> None:
    options = {"val_check_interval": 3}
    fit(tmp_path, Line(), max_steps=4, **options)
    line = Line()
    fit(tmp_path, line, tmp_path / "last.ckpt", max_steps=5, **options)
    assert line.validated == [5]
    line = Line()
    fit(tmp_path, line, tmp_path / "last.ckpt", max_steps=5, **options)
    assert line.validated == [], "it was at its end"
    line = Line()
    fit(tmp_path, line, tmp_path / "last.ckpt", max_steps=8, **options)
    assert line.validated == [6, 8]
