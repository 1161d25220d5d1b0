"""Writing small files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that a killed process leaves no half file.

    Args:
        path: The file to make; missing folders are created.
        write: Writes to the path it is given.

    Raises:
        MusiccmError: The disk is full or not writable.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except Exception as error:
        # safetensors reports a full disk under its own exception class.
        if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
            raise MusiccmError(f"{path}: could not be written: {error}; free space or choose another folder") from error
        raise
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
