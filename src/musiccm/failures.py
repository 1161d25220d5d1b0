"""What kept a file from being written, in words."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

#: Longest name of a file on the usual file systems, in bytes.
NAME_BYTES = 255
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


def name_too_long(path: Path) -> str:
    """What is said of a name that the file system does not take."""
    longest = max(len(os.fsencode(part)) for part in path.parts)
    return f"a name of {longest} bytes is too long for this file system; choose a shorter one"


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
        return name_too_long(path)
    if path.is_dir() and number in (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return "a folder is there; choose another name"
    blocking = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if number in (errno.ENOTDIR, errno.EEXIST) and not blocking.is_dir():
        return f"{blocking} is no folder; {_CHOOSE}"
    if number == errno.ENOENT and not path.parent.is_dir():
        return f"its folder {path.parent} is not there, or not any more; make it, or {_CHOOSE}"
    said = os.strerror(number) if isinstance(error, OSError) and number is not None else str(error)
    return f"{said}; {_CHOOSE}"
