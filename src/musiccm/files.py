"""Files: small ones written whole or not at all, failures in words, any one known by its digest, and their names.

A name on a disk is bytes. Where they are not UTF-8, Python holds each of those bytes as a lone surrogate, which opens
the file and can be written nowhere. So paths stay as Python has them in memory; wherever a name becomes text (clip ids,
reports, JSON, pages, the terminal) it is `escaped`, and `unescaped` makes the name again.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from musiccm import locks, signals
from musiccm.errors import MusiccmError

#: Name of the error handler by which text streams write what their encoding lacks, as `printable` does.
PRINTABLE = "musiccm.printable"
_SURROGATE = re.compile("[\ud800-\udfff]")
# Bytes below 0x80 are always UTF-8, so that only these forms stand for a byte; 5c is the backslash itself.
_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
                     codecs.BOM_UTF16_BE: "UTF-16"}


def escaped(name: str | PurePath) -> str:
    r"""The name of a file as text: a byte that is not UTF-8 is `\xe9`; a backslash that would read so is `\x5c`.

    Args:
        name: A name or path as Python has it.

    Returns:
        Text for ids and reports, different for different names; nearly every name is its own.
    """
    return printable(_ESCAPE.sub(lambda found: f"\\x5cx{found[1]}", str(name)))


def unescaped(text: str) -> str:
    """The name that `escaped` made a text of, as Python opens it."""
    return _ESCAPE.sub(lambda found: "\\" if found[1] == "5c" else chr(0xDC00 + int(found[1], 16)), text)


def require_utf8(folder: str | Path, option: str) -> None:
    """Refuse a folder for tensors whose name is not UTF-8: safetensors writes into it, and cannot open it again.

    Args:
        folder: What is to be written.
        option: What names it, for the message.

    Raises:
        MusiccmError: Its absolute path is not UTF-8.
    """
    path = str(Path(folder).absolute())
    if printable(path) != path:
        raise MusiccmError(f"{option} {folder}: the path is not UTF-8, and files of tensors cannot be opened under it; "
                           "name another folder")


def printable(text: str) -> str:
    """Any text with nothing in it that UTF-8 cannot write, for messages that names may stand in; see `escaped`."""
    return _SURROGATE.sub(lambda found: _backslashed(found[0]), text)


def _backslashed(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _write_backslashed(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_backslashed, error.object[error.start : error.end])), error.end


codecs.register_error(PRINTABLE, _write_backslashed)


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file that people write: UTF-8, with a byte order mark or without.

    Args:
        path: The file.
        errors: What becomes of bytes that are not UTF-8; `surrogateescape` leaves them to the caller.

    Returns:
        The text without the mark, line ends as they are.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        MusiccmError: Its byte order mark says that it is UTF-16 or UTF-32.
    """
    content = path.read_bytes()
    other = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if other is not None:
        raise MusiccmError(f"{path}: the text is {other} (Windows calls it Unicode), expected UTF-8; save it again as "
                           f"UTF-8, or run `iconv -f {other} -t UTF-8`")
    return content.decode("utf-8-sig", errors=errors)


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
                raise MusiccmError(f"{folder}: was made by something else meanwhile, and is not overwritten; choose "
                                   "another name") from error
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; names in it are made `printable`."""

    def write(temporary: Path) -> None:
        temporary.write_text(printable(text), encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; names in it are made `printable`."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # Surrogates stand within strings alone, where JSON wants a backslash doubled.
    write_text(path, _SURROGATE.sub(lambda found: "\\" + _backslashed(found[0]), text) + "\n")


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
