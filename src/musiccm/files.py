"""Files and folders written whole or not at all, what killed writers left removed, and any file known by its digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musiccm import locks, signals
from musiccm.errors import MusiccmError
from musiccm.failures import why_not_written
from musiccm.texts import json_text, printable


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
        if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
            raise MusiccmError(f"{path}: could not be written: {why_not_written(error, path)}") from error
        raise


def short_name(name: str, most_bytes: int) -> str:
    """A name that leaves room for what follows it: its beginning and a digest where it is longer than that."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: most_bytes - len(digest) - 1].decode(errors='ignore')}-{digest}"


def made_meanwhile(path: Path) -> MusiccmError:
    """What is raised where a name that was free has been taken before the file or folder was finished."""
    return MusiccmError(f"{path}: was made by something else meanwhile, and is not overwritten; choose another name")


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
        raise made_meanwhile(path) from error


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give a path to write to, in a hidden folder beside `path`; what remains in that folder is removed in the end.

    The folder is `.musiccm-<16 hexadecimal digits>.tmp`, however long the target's name is. It holds a lock as long as
    this process lives, which is how `sweep` knows what a killed one has left. A folder, and not a file, as some
    libraries put a file of their own in the place of the one that they were given.

    Args:
        path: What will be made; its folder must exist.

    Yields:
        A path where nothing is yet. It has no suffix: searches for audio or checkpoints pass it over.
    """
    folder, lock = _new_temporary(path.parent)
    try:
        yield folder / "new"
    finally:
        _remove(folder)
        if lock is not None:
            lock.release(remove=False)  # where something could not be removed, the file marks it for the next sweep


def write_atomically(path: Path, write: Callable[[Path], None], replace: bool = True) -> None:
    """Let `write` fill a temporary file, confirm it by the disk, and put it in its place: no kill leaves a half file.

    What killed processes have left beside `path` is removed once a process.

    Args:
        path: The file to make; missing folders are created.
        write: Writes to the path it is given.
        replace: Whether a file of that name may go; if not, it stays also where it came a moment ago.

    Raises:
        MusiccmError: The disk is full or not writable, or a file has that name and may not be replaced.
    """
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        with temporary_beside(path) as temporary:
            write(temporary)
            os.chmod(temporary, 0o644)
            # File systems that allocate late say only here that the disk is full; and what is renamed must be whole
            # even where the machine loses its power.
            descriptor = os.open(temporary, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            move_into_place(temporary, path, replace)


@contextlib.contextmanager
def replacing_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Fill a folder beside `folder`, which takes its place in the end; one process at a time.

    Args:
        folder: The folder to make or replace; missing ones above it are created.
        replace: Whether a folder of that name may go; an empty one always may.

    Yields:
        Where to make the new folder; nothing is there yet. After an exception `folder` is as it was.

    Raises:
        MusiccmError: Another process is making this folder, or it cannot be written.
    """
    folder = folder.absolute()
    name = hashlib.sha256(folder.name.encode()).hexdigest()[:16]
    with locks.existing_folder(folder.parent):
        lock = locks.hold(folder.with_name(f".musiccm-{name}.lock"), folder)
        try:
            sweep(folder.parent)
            with contextlib.ExitStack() as stack:
                with naming_full_disk(folder):
                    staging = stack.enter_context(temporary_beside(folder))
                yield staging
                with naming_full_disk(folder):
                    _exchange(staging, folder, replace)
        finally:
            lock.release()


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder; those of living ones stay.

    Nothing else is touched: only folders with our name for them, and our lock file in them that nobody holds. Where
    there are no locks, nothing is removed.

    Args:
        folder: The folder; those in it are not searched.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry) for entry in entries
                     if _TEMPORARY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for temporary in found:
        with contextlib.suppress(OSError, locks.NoLocks):
            try:
                lock = locks.take(temporary / locks.LOCK, create=False)
            except FileNotFoundError:
                temporary.rmdir()  # only where it is empty: killed between two lines
                continue
            if lock is not None:
                _remove(temporary)
                lock.release(remove=False)


def sweep_below(folder: Path) -> None:
    """`sweep` of a folder and all folders in it."""
    for below, names, _ in os.walk(folder):
        sweep(Path(below))
        names[:] = [name for name in names if not _TEMPORARY.fullmatch(name)]


_TEMPORARY = re.compile(r"\.musiccm-[0-9a-f]{16}\.tmp")
_swept: set[str] = set()


def _sweep_once(folder: Path) -> None:
    place = os.path.abspath(folder)
    if place not in _swept:
        _swept.add(place)
        sweep(folder)


def _new_temporary(parent: Path) -> tuple[Path, locks.Lock | None]:
    while True:
        folder = parent / f".musiccm-{secrets.token_hex(8)}.tmp"
        folder.mkdir()
        try:
            lock = locks.take(folder / locks.LOCK)
        except FileNotFoundError:
            continue  # swept away between the two lines
        except locks.NoLocks:
            return folder, None
        if lock is not None:
            return folder, lock


def _remove(temporary: Path) -> None:
    """Remove a temporary folder, its lock file last: what is left half removed can still be told from others'."""
    with contextlib.suppress(OSError):
        for path in temporary.iterdir():
            if path.name == locks.LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (temporary / locks.LOCK).unlink(missing_ok=True)
        temporary.rmdir()


def _exchange(staging: Path, folder: Path, replace: bool) -> None:
    """Put a folder in the place of another, which goes where it will be removed with everything temporary."""
    replaced = staging.with_name("old")
    with signals.held():
        if replace and folder.exists():
            folder.rename(replaced)
        try:
            staging.rename(folder)
        except OSError as error:
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and folder.exists():
                raise made_meanwhile(folder) from error
            raise


def write_bytes(path: Path, content: bytes | memoryview, replace: bool = True) -> None:
    """Write bytes, whole or not at all; arguments and errors as `write_atomically`."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write, replace)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; names in it are made `printable`."""
    write_bytes(path, printable(text).encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; names in it are made `printable`."""
    write_text(path, json_text(value) + "\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
