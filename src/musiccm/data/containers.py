"""What an audio file's bytes say about it: which format they are, and whether their end is missing.

libsndfile opens a file by its content whatever its name, and reads a wav, ogg or mp3 that was cut off as if it ended
there. Both would go unnoticed without a look at the bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

# Bitrates in kb/s and rates in Hz of MPEG audio layer III (ISO 11172-3, 13818-3), by the header's index.
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = (44100, 48000, 32000)
# The longest FLAC frame worth searching for at the end of a file: 65,535 samples of two 24-bit channels fit.
_FLAC_TAIL_BYTES = 1 << 19


def sniff_format(head: bytes) -> str | None:
    """The suffix that a file with these first bytes should have.

    Args:
        head: The first 12 bytes or more.

    Returns:
        `.wav`, `.flac`, `.ogg`, `.mp3`, or None where the bytes are none of these.
    """
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return ".wav"
    if head[:4] == b"fLaC":
        return ".flac"
    if head[:4] == b"OggS":
        return ".ogg"
    if head[:3] == b"ID3" or (len(head) > 3 and _mp3_frame(head, 0) is not None):
        return ".mp3"
    return None


def missing_end(path: Path) -> str | None:
    """Say whether the end of an audio file is missing, from the lengths that its container states.

    Args:
        path: A wav, flac, ogg or mp3 file.

    Returns:
        What is missing, in a few words; None where nothing is, or where the format does not tell.
    """
    data = path.read_bytes()
    kind = sniff_format(data[:16])
    if kind == ".wav":
        return _wav_end(data)
    if kind == ".flac":
        return _flac_end(data)
    if kind == ".ogg":
        return _ogg_end(data)
    return _mp3_end(data) if kind == ".mp3" else None


def _wav_end(data: bytes) -> str | None:
    order = ">" if data[:4] == b"RIFX" else "<"
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack(f"{order}4sI", data[place : place + 8])
        if name == b"data":
            # Writers that stream, and RF64, leave the size at 0 or all ones: it then says nothing.
            if size in (0, 0xFFFFFFFF) or place + 8 + size <= len(data):
                return None
            return f"{len(data) - place - 8} of {size} bytes of samples"
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


def _mp3_frame(data: bytes, place: int) -> tuple[int, int] | None:
    """`(bytes of the frame, bytes before its Xing header)` of a layer III frame; None where there is none."""
    if place + 4 > len(data):
        return None
    (word,) = struct.unpack(">I", data[place : place + 4])
    version, layer, bitrate, rate = (word >> 19) & 3, (word >> 17) & 3, (word >> 12) & 15, (word >> 10) & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    first, mono = version == 3, (word >> 6) & 3 == 3
    rate_hz = _RATES_HZ[rate] // {3: 1, 2: 2, 0: 4}[version]
    length = (144_000 if first else 72_000) * (_KBPS_1 if first else _KBPS_2)[bitrate] // rate_hz + ((word >> 9) & 1)
    return length, 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _mp3_end(data: bytes) -> str | None:
    place = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        place = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    stated, frames = None, 0
    while (frame := _mp3_frame(data, place)) is not None:
        length, offset = frame
        if frames == 0 and stated is None and data[place + offset : place + offset + 4] in (b"Xing", b"Info"):
            flags, count = struct.unpack(">II", data[place + offset + 4 : place + offset + 12].ljust(8, b"\0"))
            stated = count if flags & 1 else None
            frames -= 1  # the frame that holds the count is not among those counted
        if place + length > len(data):
            return "the last frame is incomplete"
        place += length
        frames += 1
    # Some encoders count the frame of the count itself.
    return f"{frames} of {stated} frames" if stated is not None and frames + 1 < stated else None
