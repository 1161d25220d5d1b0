"""What a wav's header states about its length, and whether that can be true."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

# A wav that is written to a pipe cannot state its length. Programs leave 0, all ones, or the most that a signed number
# holds, less a header: from here on a size says nothing.
_NO_SIZE, _NO_LONG_SIZE = 0x7FFF0000, 0x7FFF_FFFF_FFFF_0000


@dataclass(frozen=True)
class WavLength:
    """Length of a wav's samples.

    Args:
        found: Bytes from their first to the end of the file.
        stated: Bytes that the header states; None where it states nothing: the samples go on to the end.
        mended: Where in the file a size stands that libsndfile would stumble over, and the bytes that belong there.
    """

    found: int
    stated: int | None
    mended: tuple[int, bytes] | None = None

    @property
    def missing(self) -> str | None:
        """What is missing at the end, in a few words; None where nothing is."""
        if self.stated is None or self.stated <= self.found:
            return None
        return f"{self.found} of {self.stated} bytes of samples"


def wav_length(file: BinaryIO, start: int = 0) -> WavLength | None:
    """Compare the size that a wav states for its samples with what is there.

    A size that is more than there is states nothing where it is 2 GiB less 64 KiB or more, or where the size of the
    whole, which is written together with it, leaves no room for it: that header was never finished. Neither does 0,
    where the size of the whole says nothing either, or the file goes on behind what that covers. Any other size that
    is more than there is means a file that was cut off.

    Args:
        file: A wav, RF64 or RIFX file that can seek; its position is moved.
        start: Where it begins, behind tags.

    Returns:
        The lengths; None where there are no samples.
    """
    def read(place: int, size: int) -> bytes:
        file.seek(place)
        return file.read(size)

    end = file.seek(0, os.SEEK_END)
    head = read(start, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    whole, place, long = struct.unpack(f"{order}I", head[4:8])[0], start + 12, None
    long_at = 0
    while len(chunk := read(place, 8)) == 8:
        name, size = struct.unpack(f"{order}4sI", chunk)
        if name == b"ds64" and len(sizes := read(place + 8, 16)) == 16:  # 64-bit sizes, EBU Tech 3306
            whole, long = struct.unpack("<QQ", sizes)
            long_at = place + 8
        if name == b"data":
            found, limit = end - place - 8, _NO_SIZE
            mended = place + 4, struct.pack(f"{order}I", min(found, 0xFFFFFFFF))
            if long is not None and size in (0, 0xFFFFFFFF):
                size, limit, mended = long, _NO_LONG_SIZE, (long_at, struct.pack("<QQ", end - start - 8, found))
            covered = start + 8 + whole
            if size == 0 and found and (whole == 0 or whole >= limit or covered < end):
                return WavLength(found, None, mended)
            if size > found and (size >= limit or place + 8 + size > covered):
                return WavLength(found, None, None if long is None else mended)
            return WavLength(found, size)
        place += 8 + size + size % 2
    return None
