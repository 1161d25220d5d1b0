"""The end of a run, on disk."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class LastStep(pl.Callback):
    """Lets `last.ckpt` hold the last step, also where `max_steps` is no multiple of the saving cadence.

    Lightning leaves the file at the last multiple; the table would then describe a student that is short of the end of
    its learning-rate curve. Saved while the batch ends, so that the place in the epoch is right for who trains on.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Overwrite what was saved last, where that was before this step."""
        if trainer.global_step != trainer.max_steps:
            return
        for saver in trainer.checkpoint_callbacks:
            path = getattr(saver, "last_model_path", "")
            if path and getattr(saver, "_last_global_step_saved", None) != trainer.global_step:
                trainer.save_checkpoint(path, weights_only=False)  # that is, with the optimizers
