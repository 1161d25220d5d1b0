"""Files: small ones written whole or not at all, a full disk named, and any one known by its digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError

NAME_BYTES = 255
"""Longest name of a file on the usual file systems."""
_DRAWN = 8  # characters that tempfile adds


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn what a library raises when it cannot write into an error that names the file or folder.

    Args:
        path: What is written.

    Raises:
        MusiccmError: The disk is full or not writable, or the name is too long.
    """
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk under its own exception class.
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise MusiccmError(name_too_long(path)) from error
        if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
            raise MusiccmError(f"{path}: could not be written: {error}; free space or choose another folder") from error
        raise


def name_too_long(path: str | os.PathLike[str]) -> str:
    """What is said of a name that the file system does not take."""
    return (f"{os.fspath(path)}: the name is longer than the file system allows ({NAME_BYTES} bytes as a rule); choose "
            "a shorter one")


def hidden_name(name: str, ending: str) -> str:
    """What a file or folder is called until it is whole and gets its name.

    Args:
        name: The name that it will get.
        ending: What follows, such as `.partial`.

    Returns:
        `.<name><ending>`; where no file system would take that, nor with the few characters that `tempfile` adds, a
        digest stands for the name.
    """
    hidden = f".{name}{ending}"
    if len(os.fsencode(hidden)) + _DRAWN > NAME_BYTES:
        return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{ending}"
    return hidden


def short_name(name: str, most_bytes: int) -> str:
    """A name that leaves room for what follows it: its beginning and a digest where it is longer than that."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: most_bytes - len(digest) - 1].decode(errors='ignore')}-{digest}"


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
            handle, temporary = tempfile.mkstemp(prefix=hidden_name(path.name, "."), dir=path.parent)
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
