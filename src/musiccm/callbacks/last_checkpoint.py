"""The files that a run saves into: the newest, and the one that holds its last step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

LAST = "last.ckpt"


def folders(trainer: pl.Trainer) -> list[Path]:
    """Where the run's checkpoint callbacks write."""
    found = [getattr(saver, "dirpath", None) for saver in trainer.checkpoint_callbacks]
    return [Path(folder) for folder in found if folder]


def newest(trainer: pl.Trainer) -> Path | None:
    """The checkpoint that was written last, by this run or before it in the same folders; else the one resumed from."""
    files = [path for folder in folders(trainer) for path in folder.glob("*.ckpt")]
    if files:
        return max(files, key=lambda path: path.stat().st_mtime_ns)
    return Path(trainer.ckpt_path) if trainer.ckpt_path else None


def describe(trainer: pl.Trainer) -> str:
    """The newest checkpoint and its step, for a message."""
    path = newest(trainer)
    if path is None:
        return "no checkpoint had been written yet"
    try:
        step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception as error:  # of whatever kind; the message must come all the same
        return f"the newest checkpoint is {path}, which cannot be read ({type(error).__name__})"
    return f"the last good checkpoint is {path} (step {step})"


class LastStep(pl.Callback):
    """Lets `last.ckpt` hold the last step, also where `max_steps` is no multiple of the saving cadence.

    Lightning leaves the file at the last multiple; the table would then describe a student that is short of the end of
    its learning-rate curve. Saved while the batch ends, so that the place in the epoch is right for who trains on.

    A run that goes on from its folder's `last.ckpt` overwrites it. Lightning does so only where its callback had
    written the file, not where a signal had, nor in a folder that was moved: it would save into `last-v1.ckpt`.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell who saves there that the file which the run goes on from is its own."""
        for saver in trainer.checkpoint_callbacks:
            folder = getattr(saver, "dirpath", None)
            if not (folder and trainer.ckpt_path and getattr(saver, "save_last", None)):
                continue
            path = os.path.join(folder, LAST)
            if not saver.last_model_path and os.path.realpath(path) == os.path.realpath(trainer.ckpt_path):
                saver.last_model_path = path  # spelt as Lightning does, which compares the texts

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Overwrite what was saved last, where that was before this step."""
        if trainer.global_step != trainer.max_steps:
            return
        for saver in trainer.checkpoint_callbacks:
            path = getattr(saver, "last_model_path", "")
            if path and getattr(saver, "_last_global_step_saved", None) != trainer.global_step:
                trainer.save_checkpoint(path, weights_only=False)  # that is, with the optimizers
