"""What `musiccm fit | validate | test` say in Lightning's place: what is trained, where, what came out, what can go."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from musiccm.texts import number_text


def opening_words(command: str, trainer: pl.Trainer, model: pl.LightningModule, ckpt_path: str | None) -> str:
    """What begins.

    Args:
        command: `fit`, `validate` or `test`.
        trainer: On which devices.
        model: What is trained or measured.
        ckpt_path: From which checkpoint; None for none.

    Returns:
        A line.
    """
    devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    said = f"{command}: {type(model).__name__} on {devices}{trainer.strategy.root_device}"
    trained = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in
               model.named_children()}
    if command == "fit" and any(trained.values()):
        parts = ", ".join(f"{name} {count:,} parameters" for name, count in trained.items() if count)
        said += f", trains {parts}"
    return said + (f", from {ckpt_path}" if ckpt_path else "")


def metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a loop, a line each.

    Args:
        metrics: What a trainer's callbacks are told.

    Returns:
        Lines in the order of their names.
    """
    return [f"{name} {number_text(float(value))}" for name, value in sorted(metrics.items())]


def unfinished(trainer: pl.Trainer) -> str | None:
    """That a run ended before its last step, in a line; None where it did not, or has none."""
    if trainer.max_steps == -1 or trainer.global_step >= trainer.max_steps:
        return None
    return (f"fit: ended at step {trainer.global_step} of {trainer.max_steps}, by trainer.max_time, max_epochs or a "
            "callback")


def closing_words(folder: Path, checkpoint: Path) -> str:
    """Sizes, and the command that exports the student.

    Args:
        folder: The run's, `lightning_logs/<experiment>/version_N`.
        checkpoint: Its newest, which is read without its tensors' data.

    Returns:
        Lines.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    moments, weights = (sum(map(_bytes, _tensors(content.get(key)))) for key in ("optimizer_states", "state_dict"))
    run = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    here, shown = (Path(os.path.relpath(path)) for path in (checkpoint, folder))
    command = shlex.join(["musiccm", "export", "--checkpoint", str(here), "--out", f"{folder.parent.name}-student"])
    return (f"{shown}: {_megabytes(run)}, of which {here.name} {_megabytes(checkpoint.stat().st_size)}: networks "
            f"{_megabytes(weights)}, optimizers {_megabytes(moments)}. The student alone is made a model by\n"
            f"  {command}\n"
            f"Then, and after `musiccm test`, {here.name} can go, unless the run is to go on")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
