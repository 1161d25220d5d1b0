"""How far a run is, as whole lines: what a log file takes in place of a bar that redraws itself."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from musiccm.progress import Lines
from musiccm.texts import number_text


class ProgressLines(ProgressBar):
    """A line every tenth of the run or every half minute: steps, pace, time left, and what the system shows of itself.

    Takes the place of Lightning's bar. The metrics are read when a line is written, and at no other step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._lines: Lines | None = None
        self._loop: Lines | None = None
        self._batches = 0

    def disable(self) -> None:
        """Be silent, as on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show lines."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count; what a checkpoint had done is not done by this run."""
        total = trainer.max_steps if trainer.max_steps != -1 else math.inf
        if trainer.max_epochs not in (None, -1):
            steps = trainer.max_epochs * trainer.num_training_batches / trainer.accumulate_grad_batches
            total = min(total, steps)
        self._lines = Lines("fit", total, "step", trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write a line when one is due."""
        if self._enabled and self._lines is not None and self._lines.due(trainer.global_step):
            self._lines.print(trainer.global_step, self._metrics(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last line."""
        if self._enabled and self._lines is not None:
            self._lines.print(trainer.global_step, self._metrics(trainer, pl_module))

    def _metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        shown = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        return "".join(f", {name} {number_text(value)}" for name, value in shown.items())

    def _begin(self, label: str, batches: float) -> None:
        self._batches = 0
        self._loop = Lines(label, batches, "batch")

    def _count(self) -> None:
        self._batches += 1
        if self._enabled and self._loop is not None and self._loop.due(self._batches):
            self._loop.print(self._batches)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._begin("validate", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write a line when one is due."""
        self._count()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._begin("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write a line when one is due."""
        self._count()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._begin("encode", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write a line when one is due."""
        self._count()
