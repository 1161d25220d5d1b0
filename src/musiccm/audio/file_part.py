"""A part of a file, as a file of its own."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class FilePart(io.FileIO):
    """What lies behind the first bytes of a file, with a few bytes of it replaced.

    Args:
        path: The file.
        offset: Bytes that are passed over.
        place: Where in the file bytes are replaced.
        instead: By which.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | Path, offset: int, place: int = 0, instead: bytes = b"") -> None:
        super().__init__(path)
        self._offset, self._place, self._instead = offset, place, instead
        self.seek(0)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted from the first that is not passed over."""
        return super().seek(position + (self._offset if whence == os.SEEK_SET else 0), whence) - self._offset

    def tell(self) -> int:
        """Where the next byte comes from, counted in the same way."""
        return super().tell() - self._offset

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes; gives how many bytes that are."""
        begin = super().tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        first, last = max(begin, self._place), min(begin + count, self._place + len(self._instead))
        if first < last:
            view[first - begin : last - begin] = self._instead[first - self._place : last - self._place]
        return count
