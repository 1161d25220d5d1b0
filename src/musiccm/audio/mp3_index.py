"""Where the frames of an mp3 lie and which bytes each needs, found by walking their headers (ISO 11172-3, 13818-3).

The frame count in an mp3's first frame (Xing, Info, VBRI) may be missing or wrong; the frames themselves are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from musiccm.audio.content import skip_tags
from musiccm.audio.mp3_frame import Mp3Format, frame_length, frame_lengths, kind_of

# Samples by which every decoder is late: the delay that an encoder states counts from there.
_DECODER_DELAY = 529


@dataclass(frozen=True)
class Mp3Index:
    """The frames of an mp3.

    Args:
        format: What they have in common.
        starts_N: First byte of each, in the file.
        sizes_N: Its length in bytes.
        bodies_N: Bytes of data in all frames before it, with one entry more, for all.
        begins_N: How many bytes back its own data begins.
        sound_N: False where the data that it needs is not there; it has to be silent.
        trim: Samples to leave out at the beginning and at the end, that the encoder added.
        cut: What is missing at the end, in a few words.
        damage: What is wrong between the frames, in a few words.
    """

    format: Mp3Format
    starts_N: np.ndarray
    sizes_N: np.ndarray
    bodies_N: np.ndarray
    begins_N: np.ndarray
    sound_N: np.ndarray
    trim: tuple[int, int]
    cut: str | None
    damage: str | None

    @property
    def samples(self) -> int:
        """Samples a channel that the file holds."""
        return max(0, len(self.starts_N) * self.format.samples_a_frame - sum(self.trim))

    def needed_for(self, frame: int) -> tuple[int, int]:
        """Where a decoder has to begin so that `frame` comes out right.

        The transform overlaps with the frame before, whose own overlaps with the one before that, and the synthesis
        filter reaches back less than a frame: two frames have to be decoded ahead. The data of the first of them may
        lie in earlier ones, up to 511 bytes back, which at a low bitrate are many frames.

        Returns:
            `(first frame whose bytes are needed, first one that is decoded)`.
        """
        decoded = max(0, frame - 2)
        wanted = int(self.bodies_N[decoded] - self.begins_N[decoded])
        return max(0, int(np.searchsorted(self.bodies_N[: decoded + 1], wanted, "right")) - 1), decoded


def index_mp3(data: bytes) -> Mp3Index | None:
    """Walk the frames of an mp3.

    Args:
        data: The file.

    Returns:
        Its frames; None where it holds none of layer III.
    """
    begin = _next_frame(data, skip_tags(_reader(data)), run=3)
    if begin is None:
        return None
    kind, form = kind_of(data, begin), Mp3Format(data[begin : begin + 4])
    is_count, stated, stated_bytes, delay, padding = _first_frame(data, begin, form)
    place = begin + frame_length(data, begin) if is_count else begin
    starts, joints, cut, damage = _walk(data, place, kind)
    bytes_N = np.frombuffer(data, np.uint8)
    starts_N = np.array(starts, np.int64)
    other = np.flatnonzero((bytes_N[starts_N + 3] >> 6 == 3) != (form.channels == 1))
    if len(other):
        damage = f"the number of channels changes after {_seconds(int(other[0]), form)}"
        starts_N = starts_N[: other[0]]
    n = len(starts_N)
    sizes_N = _lengths()[bytes_N[starts_N + 1].astype(np.int64) << 8 | bytes_N[starts_N + 2]]
    side_N = np.where(bytes_N[starts_N + 1] & 1, 4, 6)
    bodies_N = np.concatenate([[0], np.cumsum(sizes_N - side_N - form.side_bytes)])
    begins_N, bits_N = _side_information(bytes_N, starts_N + side_N, form)
    # Behind bytes that are no frames, nothing is left in the reservoir.
    emptied_N = np.zeros(n, np.int64)
    for joint in joints:
        emptied_N[joint:] = joint
    held_N = bodies_N[:-1] - bodies_N[emptied_N]
    sound_N = (begins_N <= held_N) & (bits_N <= 8 * (begins_N + np.diff(bodies_N)))
    if stated is not None and n + 1 < stated:  # some encoders count the frame of the count itself
        cut = f"{_seconds(n, form)} of {_seconds(stated, form)}"
    # The padding is that of the end that was encoded, not of a file that lacks it or has another file behind it.
    there = int(starts_N[-1] + sizes_N[-1]) - begin if n else 0
    whole = (cut is None or 0 < stated_bytes <= there) and not _another_count(bytes_N, starts_N, form)
    return Mp3Index(form, starts_N, sizes_N, bodies_N, np.minimum(begins_N, held_N), sound_N,
                    (delay, padding if whole else 0), cut, damage)


@lru_cache(maxsize=1)
def _lengths() -> np.ndarray:
    return np.array(frame_lengths(), np.int32)


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda place, size: data[place : place + size]


def _seconds(frames: int, form: Mp3Format) -> str:
    return f"{frames * form.samples_a_frame / form.sample_rate_hz:.2f} s"


def _next_frame(data: bytes, place: int, kind: int | None = None, run: int = 2) -> int | None:
    """The first of `run` frames in a row of one kind, or of a run that the end of the file ends, from `place` on."""
    while (place := data.find(b"\xff", place)) >= 0:
        if frame_length(data, place, kind):
            same, behind, seen = kind_of(data, place), place, 0
            while seen < run and (length := frame_length(data, behind, same)):
                behind, seen = behind + length, seen + 1
            if seen == run or behind == len(data):
                return place
        place += 1
    return None


def _walk(data: bytes, place: int, kind: int) -> tuple[list[int], list[int], str | None, str | None]:
    """`(starts of all frames, numbers of those that follow a gap, what is cut off, what is wrong)`."""
    starts: list[int] = []
    joints: list[int] = []
    damage, end, lengths = None, len(data), frame_lengths(kind)
    while True:
        while place + 4 <= end and data[place] == 0xFF and (length := lengths[data[place + 1] << 8 | data[place + 2]]):
            starts.append(place)
            place += length
        if place > end:
            starts.pop()
            return starts, joints, "the last frame is incomplete", damage
        behind = skip_tags(_reader(data), place)
        again = _next_frame(data, behind, kind)
        if again is None:
            # Three in a row do not occur by chance in what stands behind the music.
            if _next_frame(data[:-1], behind, run=3) is not None:
                damage = damage or f"the sampling rate changes behind frame {len(starts)}"
            return starts, joints, None, damage
        if data[behind:again].strip(b"\0"):
            damage = damage or f"{again - behind} bytes behind frame {len(starts)} are no mp3"
        joints.append(len(starts))
        place = again


def _first_frame(data: bytes, place: int, form: Mp3Format) -> tuple[bool, int | None, int, int, int]:
    """What the first frame states, if it is no sound.

    Returns:
        `(whether it is no sound, frames, bytes or 0, samples to leave out at the beginning, at the end)`.
    """
    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[at : at + size], "big")

    if data[place + 36 : place + 40] == b"VBRI":  # Fraunhofer's, at a fixed place
        return True, number(place + 50), number(place + 46), 0, 0
    tag = place + 4 + form.side_bytes
    if data[tag : tag + 4] not in (b"Xing", b"Info"):
        return False, None, 0, 0, 0
    flags, at = number(tag + 4), tag + 8
    stated, at = (number(at), at + 4) if flags & 1 else (None, at)
    stated_bytes, at = (number(at), at + 4) if flags & 2 else (0, at)
    # Behind the table of contents and the quality, as far as flagged: the encoder's name and its delays (LAME).
    at += 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    delays = number(at + 21, 3) if any(data[at : at + 1]) else 0
    return True, stated, stated_bytes, (delays >> 12) + _DECODER_DELAY, max(0, (delays & 0xFFF) - _DECODER_DELAY)


def _another_count(bytes_N: np.ndarray, starts_N: np.ndarray, form: Mp3Format) -> bool:
    """Whether a frame within the stream is the first one of another file."""
    places_N = starts_N + 4 + form.side_bytes
    places_N = places_N[places_N + 4 <= len(bytes_N)]
    for name in (b"Xing", b"Info"):
        like_N = places_N
        for byte, value in enumerate(name):
            like_N = like_N[bytes_N[like_N + byte] == value]
        if len(like_N):
            return True
    return False


def _side_information(bytes_N: np.ndarray, side_N: np.ndarray, form: Mp3Format) -> tuple[np.ndarray, np.ndarray]:
    """`(bytes back to where a frame's data begins, bits of its data)` of every frame.

    ISO 11172-3, 2.4.1.7: main_data_begin, private bits, scfsi; then for each granule and channel 59 bits (MPEG-2: 63,
    13818-3, 2.4.1.7), of which part2_3_length are the first twelve.
    """
    stereo = form.channels == 2

    def bits(first: int, count: int) -> np.ndarray:
        # Within three bytes. The last may lie behind the side information, but a frame has some data there.
        at_N = side_N + first // 8
        three_N = np.zeros(len(at_N), np.int64)
        for byte in range(3):
            three_N = three_N << 8 | bytes_N[np.minimum(at_N + byte, len(bytes_N) - 1)]
        return (three_N >> (24 - first % 8 - count)) & ((1 << count) - 1)

    if form.first_version:
        begins_N, granules, width, first = bits(0, 9), 2, 59, 20 if stereo else 18
    else:
        begins_N, granules, width, first = bits(0, 8), 1, 63, 10 if stereo else 9
    parts = [bits(first + part * width, 12) for part in range(granules * form.channels)]
    return begins_N, np.sum(parts, axis=0)
