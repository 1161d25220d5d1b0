"""What an audio file's bytes say about it: whether its end is missing.

libsndfile reads a wav, ogg or mp3 that was cut off as if it ended there, which would go unnoticed without a look at the
bytes.
"""

from __future__ import annotations

from pathlib import Path

from musiccm.audio.content import content_of
from musiccm.audio.crc import crc16
from musiccm.audio.mp3 import mp3_index
from musiccm.audio.wav_header import wav_length

# The longest FLAC frame worth searching for at the end of a file: 65,535 samples of two 24-bit channels fit.
_FLAC_TAIL_BYTES = 1 << 19


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
            length = wav_length(file, content.offset)
            return "no samples behind the header" if length is None else length.missing
    if content.suffix == ".flac":
        return _flac_end(path.read_bytes())
    if content.suffix == ".ogg":
        return _ogg_end(path.read_bytes())
    index = mp3_index(path) if content.suffix == ".mp3" else None
    return None if index is None else index.cut


def _flac_end(data: bytes) -> str | None:
    # A frame ends in the CRC-16 of all of it (RFC 9639, 9.3): run over the whole frame, the remainder is 0.
    tail = data[-_FLAC_TAIL_BYTES:]
    start = tail.rfind(b"\xff\xf8")
    # Sync codes occur within frames too; the last real one is among the last few.
    for _ in range(64):
        if start < 0:
            break
        if len(tail) - start > 8 and crc16(tail[start:]) == 0:
            return None
        start = tail.rfind(b"\xff\xf8", 0, start)
    return "the last frame is incomplete"


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
