"""One process at a time in a folder: locks that end with their process and say who holds them.

A lock is `flock` on a small file. The system gives it back when its process ends, however it ends: what a kill or a
loss of power leaves is a file that nobody holds, and the next process takes it over. Forked workers do not inherit it.
Between machines it is as good as the network file system's `flock`: NFS since version 4 has it (a machine that died
keeps its locks for the lease, about 90 s), mounts with `nolock` or `local_lock` know the own machine alone. Where there
is no `flock` at all, as on Windows, a warning says so and nothing is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from musiccm.errors import MusiccmError
from musiccm.failures import why_not_written

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

#: Name of a lock file in the folder that it is for.
LOCK = ".musiccm.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Somebody who only asks whether a lock is held has it for an instant.
_TRIES, _PAUSE_S = 5, 0.02
_descriptors: set[int] = set()


class NoLocks(Exception):
    """The system, or this file system, has no `flock`."""


class Lock:
    """A lock that this process holds.

    Args:
        path: The lock file.
        descriptor: Of the open file; None where nothing is locked.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self._descriptor, self._process = path, descriptor, os.getpid()

    def release(self, remove: bool = True) -> None:
        """Let go; a second call, or one in a forked process, does nothing.

        Args:
            remove: Remove the file too.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or self._process != os.getpid():
            return
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink()  # while it is held: whoever has opened it meanwhile finds that it is gone
        _descriptors.discard(descriptor)
        os.close(descriptor)


def take(path: Path, create: bool = True) -> Lock | None:
    """Take a lock, if nobody has it.

    Args:
        path: The lock file.
        create: Make the file where there is none; without, that is a FileNotFoundError.

    Returns:
        The lock; None where a living process holds it.

    Raises:
        NoLocks: There are no locks here.
        OSError: The file cannot be opened.
    """
    if fcntl is None:
        raise NoLocks
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    for _ in range(_TRIES):
        descriptor = os.open(path, flags, 0o644)
        _descriptors.add(descriptor)
        kept = False
        try:
            kept = _flock(descriptor, fcntl.LOCK_EX) and _still_at(descriptor, path)
        except NoLocks:
            if create:
                path.unlink(missing_ok=True)
            raise
        finally:
            if not kept:
                _descriptors.discard(descriptor)
                os.close(descriptor)
        if kept:
            with contextlib.suppress(OSError):  # on a full disk it is held all the same
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_own_name()).encode(), 0)
            return Lock(path, descriptor)
        time.sleep(_PAUSE_S)
    return None


def holder(path: Path) -> str | None:
    """Who holds a lock.

    Args:
        path: The lock file.

    Returns:
        Command, process, machine and time; None where nobody holds it, or that cannot be known.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _flock(descriptor, fcntl.LOCK_SH):
            return None
        found = json.loads(os.read(descriptor, 1 << 16))
        return f"`{found['command']}` (process {found['pid']} on {found['host']}, since {found['since']})"
    except NoLocks:
        return None
    except (OSError, ValueError, TypeError, KeyError):  # it is just being written
        return "another process"
    finally:
        os.close(descriptor)


def hold(path: Path, what: Path, advice: str = "name another folder") -> Lock:
    """Take a lock or say who has it.

    Args:
        path: The lock file, in a folder that exists.
        what: What it is for.
        advice: What to do instead of waiting.

    Returns:
        The lock, to be released; where there are no locks, or nothing can be written anyway, one that holds nothing.

    Raises:
        MusiccmError: A living process holds it.
    """
    try:
        lock = take(path)
    except NoLocks:
        log.warning("%s: this file system has no locks (flock); see to it that no other process works here", what)
        return Lock(path, None)
    except OSError as error:
        # Read-only, or another user's: whoever may not write meets that below, and whoever only reads needs no lock.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise MusiccmError(f"{what}: could not be locked: {error}; {advice}") from error
        lock = None if holder(path) else Lock(path, None)
    if lock is None:
        raise MusiccmError(f"{what}: in use by {holder(path) or 'another process'}; wait until that has ended, or "
                           f"{advice}")
    return lock


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for a lock that everybody holds for a moment only, as for a file that is read, changed and written again.

    Args:
        path: The lock file, in a folder that exists.
    """
    lock = None
    # Without locks, or where nothing can be written, there is nothing to wait for.
    with contextlib.suppress(NoLocks, OSError):
        while lock is None:
            lock = take(path)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder that is filled in place; it is made if there is none, and removed again if it stays empty.

    Args:
        folder: The folder.

    Raises:
        MusiccmError: Another process works in it, or it cannot be made.
    """
    with existing_folder(folder):
        lock = hold(folder / LOCK, folder)
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def existing_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; in the end, remove again what stayed empty.

    Args:
        folder: The folder.

    Raises:
        MusiccmError: It cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MusiccmError(f"{folder}: could not be written: {why_not_written(error, folder)}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def reserve_version(runs: Path) -> Path:
    """Make the next `version_N` of an experiment: two runs that start at once get two folders.

    Args:
        runs: The folder of the experiment's runs; it is made if there is none.

    Returns:
        The new folder, empty.

    Raises:
        MusiccmError: It cannot be made.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        taken = [int(found[1]) for name in os.listdir(runs) if (found := re.fullmatch(r"version_(\d+)", name))]
        number = max(taken, default=-1) + 1
        while True:
            folder = runs / f"version_{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise MusiccmError(f"{runs}: could not be written: {why_not_written(error, runs)} (--trainer.default_root_dir)"
                           ) from error


@contextlib.contextmanager
def held_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder, and remove it if nothing was written there.

    Args:
        folder: `version_N`.

    Raises:
        MusiccmError: Another process works in it.
    """
    lock = hold(folder / LOCK, folder, "give --ckpt_path a copy of the checkpoint that lies elsewhere")
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks from error
        raise
    return True


def _still_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`, and not one that its last owner has removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _own_name() -> dict[str, str | int]:
    arguments = list(sys.argv)
    if Path(arguments[0]).name in ("__main__.py", "musiccm"):
        arguments[0] = "musiccm"
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"command": shlex.join(arguments)[:500], "pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _let_go() -> None:
    while _descriptors:
        with contextlib.suppress(OSError):
            os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    # The lock is the parent's: a worker that outlives it must not hold on. Closing a copy gives nothing back.
    os.register_at_fork(after_in_child=_let_go)
