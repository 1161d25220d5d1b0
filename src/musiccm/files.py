"""Files: small ones written whole or not at all, a full disk named, and any one known by its digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn what a library raises when it cannot write into an error that names the file or folder.

    Args:
        path: What is written.

    Raises:
        MusiccmError: The disk is full or not writable.
    """
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk under its own exception class.
        if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
            raise MusiccmError(f"{path}: could not be written: {error}; free space or choose another folder") from error
        raise


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
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(handle)
            write(Path(temporary))
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def load_json(text: str) -> Any:
    """Read JSON; whatever is wrong with it is a `ValueError`, also nesting that is too deep for the reader."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
