"""Lightning's checkpoint files, written whole or not at all, and read without executing anything in them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from musiccm.errors import MusiccmError, reason
from musiccm.files import write_atomically


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
        write_atomically(Path(path), lambda temporary: _write(temporary, buffer))

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
        if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
            raise MusiccmError(f"{path}: expected a checkpoint of a run, found a file without a state_dict; those of "
                               "this project lie in lightning_logs/NAME/version_N/checkpoints")
        return dict(checkpoint)


def _write(path: Path, buffer: io.BytesIO) -> None:
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        # File systems that allocate late say only here that the disk is full; and what is renamed must be whole even
        # where the machine loses its power.
        os.fsync(file.fileno())
