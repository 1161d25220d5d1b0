"""Files: small ones written whole or not at all, failures in words, and any one known by its digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musiccm import signals
from musiccm.errors import MusiccmError

_CHOOSE = "choose another folder"
_WORDS = {
    errno.ENOSPC: f"the disk is full; free space or {_CHOOSE}",
    errno.EDQUOT: f"the quota of this disk is used up; free space or {_CHOOSE}",
    errno.EFBIG: f"a file may not be that large here (see ulimit -f); {_CHOOSE}",
    errno.EROFS: f"the file system is read-only; {_CHOOSE}",
    errno.EACCES: f"permission denied; {_CHOOSE}, or change the folder's permissions",
    errno.EPERM: f"the system does not permit it; {_CHOOSE}",
    errno.EIO: f"the disk reports an error; check it, or {_CHOOSE}",
}
# How libraries quote the system's error: safetensors and shutil.copytree.
_QUOTED = re.compile(r"os error (\d+)|\[Errno (\d+)\]")


def error_number(error: BaseException) -> int | None:
    """The system's number of a failure, such as ENOSPC, also where a library only quotes it; None if there is none."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    quoted = _QUOTED.search(str(error))
    return int(quoted[1] or quoted[2]) if quoted else None


def why_not_written(error: BaseException, path: Path) -> str:
    """What kept a file from being written, and what to do.

    Args:
        error: An OSError, or what a library makes of one.
        path: The file or folder.

    Returns:
        The end of a message, behind "could not be written: ".
    """
    number = error_number(error)
    if number in _WORDS:
        return _WORDS[number]
    path = path.absolute()
    if number == errno.ENAMETOOLONG:
        longest = max(len(os.fsencode(part)) for part in path.parts)
        return f"a name of {longest} bytes is too long for this file system; choose a shorter one"
    if path.is_dir() and number in (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return "a folder is there; choose another name"
    blocking = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if number in (errno.ENOTDIR, errno.EEXIST) and not blocking.is_dir():
        return f"{blocking} is no folder; {_CHOOSE}"
    if number == errno.ENOENT and not path.parent.is_dir():
        return f"its folder {path.parent} is not there, or not any more; make it, or {_CHOOSE}"
    said = os.strerror(number) if isinstance(error, OSError) and number is not None else str(error)
    return f"{said}; {_CHOOSE}"


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
            raise MusiccmError(f"{path}: could not be written: {why_not_written(error, path)}") from error
        raise


def move_into_place(temporary: Path, path: Path, replace: bool = True) -> None:
    """Give a finished file its name.

    Args:
        temporary: The file, in the same folder.
        path: Its name.
        replace: Whether a file of that name may go; if not, it stays also where it came a moment ago.

    Raises:
        MusiccmError: A file has that name, and may not be replaced.
        OSError: It cannot be done.
    """
    if replace:
        os.replace(temporary, path)
        return
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: an empty file claims the name, and is replaced
            path.open("xb").close()
            os.replace(temporary, path)
        else:
            temporary.unlink()
    except FileExistsError as error:
        raise MusiccmError(f"{path}: was made by something else meanwhile, and is not overwritten; choose another "
                           "name") from error


def move_folder_into_place(temporary: Path, folder: Path, replace: bool) -> None:
    """Give a finished folder its name; an older one goes when the new one is there, and stays if that fails.

    Args:
        temporary: The folder, beside its new place.
        folder: Its name.
        replace: Whether a folder of that name may go; an empty one always may.

    Raises:
        MusiccmError: A folder with something in it has that name and may not be replaced, or it cannot be done.
    """
    old = folder.with_name(f".{folder.name}.old")
    with naming_full_disk(folder), signals.held():
        if replace and folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError as error:
            if old.is_dir() and not folder.exists():
                old.rename(folder)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and folder.exists():
                raise MusiccmError(f"{folder}: was made by something else meanwhile, and is not overwritten; choose "
                                   "another name") from error
            raise
        shutil.rmtree(old, ignore_errors=True)


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
