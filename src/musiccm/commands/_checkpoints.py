"""Lightning's checkpoint files, written whole or not at all, and read without executing anything in them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.plugins.io.wrapper import _WrappingCheckpointIO

from musiccm.commands._imports import OPTION, covers
from musiccm.errors import MusiccmError, reason
from musiccm.files import write_bytes


class CheckpointFiles(TorchCheckpointIO):
    """Replaces Lightning's own, which goes through the system's temporary folder and so is atomic on one disk alone."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the target, then rename: whoever is killed meanwhile still has the previous checkpoint.

        Raises:
            MusiccmError: The disk is full or not writable.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Through memory, so that a full disk is an OSError with its cause rather than a failed check of torch's.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values alone, whatever `weights_only` says.

        Raises:
            MusiccmError: The file is damaged, holds code, or is not a checkpoint of a run.
        """
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # a broken file shows as whatever the unpickler tripped over
            raise MusiccmError(
                f"{path}: not a readable checkpoint ({reason(error)}); name another, or train again"
            ) from error
        for key in ("state_dict", "pytorch-lightning_version"):
            if not isinstance(checkpoint, Mapping) or key not in checkpoint:
                raise MusiccmError(f"{path}: expected a checkpoint of a run, found a file without a {key}; those of "
                                   "this project lie in lightning_logs/NAME/version_N/checkpoints")
        return dict(checkpoint)


def with_our_files(plugins: list[Any], strategy: Any, allowed: list[str]) -> list[Any]:
    """The Trainer's plugins, `CheckpointFiles` among them.

    Args:
        plugins: What the experiment names.
        strategy: The strategy, which may bring a reader of checkpoints too.
        allowed: What `--allow-import` names; a reader of checkpoints from there takes the place of ours.

    Returns:
        The plugins.

    Raises:
        MusiccmError: There is another reader of checkpoints, which may run what they hold.
    """
    readers = [("trainer.plugins", plugin) for plugin in plugins if isinstance(plugin, CheckpointIO)]
    if (theirs := getattr(strategy, "_checkpoint_io", None)) is not None:
        readers.append(("trainer.strategy", theirs))
    for key, reader in readers:
        while isinstance(reader, _WrappingCheckpointIO):  # one that saves in another thread, and leaves reading to ours
            if reader.checkpoint_io is None:  # Lightning would give it the strategy's, which is not ours
                reader.checkpoint_io = CheckpointFiles()
            reader = reader.checkpoint_io
        name = f"{type(reader).__module__}.{type(reader).__qualname__}"
        if not isinstance(reader, CheckpointFiles) and not covers(allowed, name):
            raise MusiccmError(f"{key}: {name} would read checkpoints, and may run what they hold; expected none, "
                               f"{CheckpointFiles.__module__}.CheckpointFiles, or a class that derives from it. Where "
                               f"you trust it, add {OPTION} {type(reader).__module__}")
    return plugins if readers else [*plugins, CheckpointFiles()]
