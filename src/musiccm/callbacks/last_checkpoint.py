"""The files that a run saves into: the newest, and the one to write before leaving."""

from __future__ import annotations

from pathlib import Path

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
