"""Where generated sound goes: checked before anything is computed, never over a file that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from musiccm.errors import MusiccmError
from musiccm.failures import NAME_BYTES, name_too_long

STDOUT = "-"


#: What whole clips are written as; a stream is a wav, which plays at every moment.
FORMATS = ("wav", "flac", "ogg", "mp3")


def output_name(out: str | None, chosen: str | None) -> str:
    """Where sound goes, from `--out` and `--format`.

    Args:
        out: What `--out` says, if anything.
        chosen: What `--format` says, if anything.

    Returns:
        `out.<format>` unless named; a name without an ending gets that of the format.

    Raises:
        MusiccmError: The name's ending is another format's.
    """
    if out is None:
        return f"out.{chosen or FORMATS[0]}"
    suffix = Path(out).suffix.lower()
    if chosen is None or out == STDOUT or suffix == f".{chosen}":
        return out
    if suffix:
        raise MusiccmError(f"--out {out}: --format says {chosen}; leave out one of the two")
    return f"{out}.{chosen}"


def output_paths(out: Path, count: int) -> list[Path]:
    """One path for one clip; `out_1.wav`, `out_2.wav`, ... for several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{index + 1}{out.suffix}") for index in range(count)]


def checked_outputs(out: str, count: int, suffixes: Sequence[str], force: bool) -> list[Path]:
    """The files that will be written; none for `-`, the standard output.

    Args:
        out: What `--out` says.
        count: Number of clips.
        suffixes: Endings that are allowed.
        force: Whether files that are there may be replaced.

    Returns:
        One path a clip, or an empty list for `-`.

    Raises:
        MusiccmError: The name has another ending, a file is there, or its folder takes none.
    """
    if out == STDOUT:
        if count != 1:
            raise MusiccmError(f"--out -: the standard output takes one clip, found {count} prompts; give one")
        return []
    path = Path(out)
    if path.suffix.lower() not in suffixes:
        raise MusiccmError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}, or - for a pipe")
    return checked_files(output_paths(path, count), force)


def checked_files(paths: list[Path], force: bool) -> list[Path]:
    """Refuse files that cannot be written, or are there.

    Args:
        paths: The files.
        force: Whether files that are there may be replaced.

    Returns:
        They.

    Raises:
        MusiccmError: A name is too long, a file is there, or its folder takes none.
    """
    for path in paths:
        if len(os.fsencode(path.name)) > NAME_BYTES:
            raise MusiccmError(f"{path}: could not be written: {name_too_long(path)}")
        if path.is_dir():
            raise MusiccmError(f"{path}: could not be written: it is a folder; name a file in it")
        if path.exists() and not force:
            raise MusiccmError(f"{path}: exists, and is not overwritten; choose another --out, or add --force")
    require_room(paths[0])
    return paths


def require_room(path: Path) -> None:
    """Refuse a file that cannot be made where it is to lie.

    Args:
        path: The file; folders on the way to it may be missing.

    Raises:
        MusiccmError: The nearest folder that is there takes no new files.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MusiccmError(f"{path}: could not be written: {folder} takes no new files; choose another folder")


def beside(folder: str, ending: str, others: Sequence[str] = ()) -> Path:
    """A file beside a folder and named after it, in none of the folders that are examined.

    Args:
        folder: As the user named it: `.`, `..` and a slash at the end are understood.
        ending: What follows the folder's name.
        others: Further folders that the file must not lie in.

    Returns:
        The file, below the path as it was given where that ends in a name.

    Raises:
        MusiccmError: There is no such place; `--out` names another.
    """
    named = Path(folder) if Path(folder).name not in ("", "..") else Path(folder).resolve()
    path = named.with_name(named.name + ending) if named.name else None
    examined = [Path(other).resolve() for other in (folder, *others)]
    if path is None or any(one in path.resolve().parents for one in examined):
        raise MusiccmError(f"--out: there is no place for the results beside {folder} that is not itself examined; "
                           "name a file")
    return path
