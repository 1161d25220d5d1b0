"""What a process that was killed while it wrote leaves behind, without killing one."""

from __future__ import annotations

from pathlib import Path

from musiccm.locks import LOCK


def leave_half_file(folder: Path, number: int = 0) -> Path:
    """A temporary folder of the atomic writer, with half a file and a lock that nobody holds; returns the folder."""
    temporary = folder / f".musiccm-{number:016x}.tmp"
    temporary.mkdir(parents=True)
    (temporary / LOCK).write_text('{"command": "musiccm", "pid": 1, "host": "here", "since": "then"}')
    (temporary / "new").write_bytes(b"half a file")
    return temporary
