"""What `musiccm fit` says when it is done: what the run takes, what of it can go, how a model is made of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    return (f"{shown}: {_megabytes(run)}, of which {here.name} {_megabytes(checkpoint.stat().st_size)}: student and "
            f"averages {_megabytes(weights)}, optimizers {_megabytes(moments)}. The student alone is made a model by\n"
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
