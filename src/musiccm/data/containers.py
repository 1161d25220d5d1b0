"""What an audio file's bytes say about it: whether its end is missing.

libsndfile reads a wav, ogg or mp3 that was cut off as if it ended there, which would go unnoticed without a look at the
bytes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from musiccm.audio.content import content_of, sniff_format
from musiccm.audio.mp3 import mp3_index

__all__ = ["missing_end", "sniff_format"]

# The longest FLAC frame worth searching for at the end of a file: 65,535 samples of two 24-bit channels fit.
_FLAC_TAIL_BYTES = 1 << 19
# A wav that is written to a pipe cannot state its length. Programs leave 0, all ones, or what a signed number holds less
# a header: from here on a size says nothing.
_NO_SIZE = 0x7FFF0000


def missing_end(path: Path) -> str | None:
    """Say whether the end of an audio file is missing, from the lengths that its container states.

    Args:
        path: A wav, flac, ogg or mp3 file, with or without tags in front.

    Returns:
        What is missing, in a few words; None where nothing is, or where the format does not tell.
    """
    with path.open("rb") as file:
        content = content_of(file)
        if content.suffix == ".wav":
            return _wav_end(file, content.offset)
    if content.suffix == ".flac":
        return _flac_end(path.read_bytes())
    if content.suffix == ".ogg":
        return _ogg_end(path.read_bytes())
    index = mp3_index(path) if content.suffix == ".mp3" else None
    return None if index is None else index.cut


def _wav_end(file: BinaryIO, start: int) -> str | None:
    """Compare the size that a wav states for its samples with what is there.

    It says nothing where it is 0 or 2 GiB less 64 KiB and more (a file of that size may still be whole), or where the
    size of the whole, which is written at the same time, leaves no room for it: then the header was never finished.
    """
    def read(place: int, size: int) -> bytes:
        file.seek(place)
        return file.read(size)

    end = file.seek(0, os.SEEK_END)
    head = read(start, 12)
    order, long_size = (">" if head[:4] == b"RIFX" else "<"), None
    whole = struct.unpack(f"{order}I", head[4:8])[0]
    place = start + 12
    while len(chunk := read(place, 8)) == 8:
        name, size = struct.unpack(f"{order}4sI", chunk)
        if name == b"ds64" and len(sizes := read(place + 8, 16)) == 16:  # EBU Tech 3306: 64-bit sizes
            whole, long_size = struct.unpack("<QQ", sizes)
        if name == b"data":
            limit = _NO_SIZE
            if size == 0xFFFFFFFF and long_size is not None:
                size, limit = long_size, 0x7FFF_FFFF_FFFF_0000
            found = end - place - 8
            if size <= found or size >= limit or place + 8 - start + size > whole + 8:
                return None
            return f"{found} of {size} bytes of samples"
        place += 8 + size + size % 2
    return "no samples behind the header"


def _flac_end(data: bytes) -> str | None:
    # A frame ends in the CRC-16 of all of it (RFC 9639, 9.3): run over the whole frame, the remainder is 0.
    tail = data[-_FLAC_TAIL_BYTES:]
    start = tail.rfind(b"\xff\xf8")
    # Sync codes occur within frames too; the last real one is among the last few.
    for _ in range(64):
        if start < 0:
            break
        if len(tail) - start > 8 and _crc16(tail[start:]) == 0:
            return None
        start = tail.rfind(b"\xff\xf8", 0, start)
    return "the last frame is incomplete"


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _CRC16[(crc >> 8) ^ byte]
    return crc


def _crc16_entry(index: int) -> int:
    crc = index << 8
    for _ in range(8):
        crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
    return crc & 0xFFFF


_CRC16 = tuple(_crc16_entry(index) for index in range(256))


def _ogg_end(data: bytes) -> str | None:
    last = data.rfind(b"OggS")
    header = data[last : last + 27]
    if len(header) < 27 or len(data) < last + 27 + header[26]:
        return "the last page is incomplete"
    body = sum(data[last + 27 : last + 27 + header[26]])
    if len(data) < last + 27 + header[26] + body:
        return "the last page is incomplete"
    # Bit 3 of the page's flags marks the end of the stream (RFC 3533, 6).
    return None if header[5] & 4 else "no page ends the stream"
