"""A run that validates ends with a validation, so that its last figures are of the weights that it ends with."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class LastValidation(pl.Callback):
    """Lets a run validate after its last step, also where that is no multiple of `val_check_interval`.

    By `Trainer.should_stop`: a run that is told to stop validates first, and once, whether or not a validation was due.
    A run whose interval is longer than itself makes none.
    """

    def __init__(self) -> None:
        self._validates = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that there are figures of an earlier step."""
        self._validates |= not trainer.sanity_checking

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """End the run here if it ends here anyway."""
        steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        epochs_done = trainer.max_epochs == trainer.current_epoch + 1 and trainer.is_last_batch
        if self._validates and (steps_done or epochs_done):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Whether the run has validated, for one that goes on."""
        return {"validates": self._validates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that up."""
        self._validates = state_dict["validates"]
