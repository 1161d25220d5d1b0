"""Decoding an mp3 from anywhere in it, to its true end.

libsndfile alone believes the frame count of the first frame, or guesses one, and reads no further; and after a jump it
decodes frames whose data it has not read. Both are mended by what it is given: a stream made of the frames that are
wanted and those that they need, with a count that is right.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from musiccm.audio.mp3_index import Mp3Index, index_mp3

# The decoder's sums run in an order that repeats after so many frames: a stream that begins at the same point of it
# gives the same bits as one from the beginning.
_CYCLE_FRAMES = 8


class Mp3File:
    """An open mp3, read like a `soundfile.SoundFile`.

    Args:
        path: The file.
        index: Its frames.
    """

    format = "MP3"

    def __init__(self, path: str | Path, index: Mp3Index) -> None:
        self.index = index
        self.frames, self.samplerate = index.samples, index.format.sample_rate_hz
        self.channels = index.format.channels
        self._file = open(path, "rb")  # noqa: SIM115
        self._place = 0

    def __enter__(self) -> Mp3File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def seek(self, frames: int) -> int:
        """Go to a sample, counted from the beginning."""
        self._place = frames
        return frames

    def read(self, frames: int = -1, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Decode from where the file stands.

        Args:
            frames: Samples a channel; -1 reads to the end, beyond which nothing comes.
            dtype: Of the result.
            always_2d: Whether mono has an axis of channels, too.

        Returns:
            Samples of shape [S, C].

        Raises:
            soundfile.LibsndfileError: The decoder gives up, or gives less than there are.
            OSError: The file cannot be read.
        """
        rest = max(0, self.frames - self._place)
        frames = rest if frames < 0 else min(frames, rest)
        samples_SC = np.zeros((0, self.channels), dtype)
        if frames:
            samples_SC = self._decode(self._place + self.index.trim[0], frames, dtype)
        self._place += frames
        return samples_SC if always_2d or self.channels > 1 else samples_SC[:, 0]

    def _decode(self, start: int, count: int, dtype: str) -> np.ndarray:
        """Samples of shape [S, C], counted from the first sample of the first frame."""
        index, a_frame = self.index, self.index.format.samples_a_frame
        first, end = start // a_frame, -(-(start + count) // a_frame)
        needed, decoded = index.needed_for(first)
        # A silent frame or more ahead: the decoder leaves out the beginning of a stream that states its length.
        ahead = 1 + (needed - 1) % _CYCLE_FRAMES
        with soundfile.SoundFile(io.BytesIO(self._stream(needed, decoded, end, ahead))) as file:
            left_out = (ahead + end - needed) * a_frame - file.frames
            lead = (ahead - needed) * a_frame + start - left_out
            # Read and dropped: libsndfile's own jumps are what leads to frames without their data.
            samples_SC = file.read(lead + count, dtype=dtype, always_2d=True)[lead:]
        if len(samples_SC) < count:
            raise OSError(f"{len(samples_SC)} of {count} samples from {start} on can be decoded")
        return samples_SC

    def _stream(self, needed: int, decoded: int, end: int, ahead: int) -> bytes:
        """An mp3 of the frames from `needed` to `end`, of which those before `decoded` only give their data."""
        index, form = self.index, self.index.format
        begin = int(index.starts_N[needed])
        places = (index.starts_N[needed:end] - begin).tolist()
        ends = (index.starts_N[needed:end] + index.sizes_N[needed:end] - begin).tolist()
        self._file.seek(begin)
        data = bytearray(self._file.read(ends[-1]))
        if len(data) < ends[-1]:
            raise OSError("the file was shortened since it was opened")
        silent = {*range(needed, decoded), *(needed + np.flatnonzero(~index.sound_N[needed:end])).tolist()}
        for frame in silent:
            place, behind = places[frame - needed], ends[frame - needed]
            held = int(index.bodies_N[frame] - index.bodies_N[needed])
            data[place:behind] = form.silenced(bytes(data[place:behind]), held)
        pieces, place = [form.count_frame(ahead + end - needed), form.empty_frame() * ahead], 0
        for behind, next_place in zip(ends, [*places[1:], None], strict=True):
            if behind != next_place:  # bytes that are no frame follow
                pieces.append(bytes(data[place:behind]))
                place = next_place or 0
        return b"".join(pieces)


def open_mp3(path: str | Path) -> Mp3File | None:
    """Open an mp3.

    Args:
        path: The file.

    Returns:
        The file at its beginning; None where it holds no frames of layer III.

    Raises:
        OSError: It cannot be read.
    """
    index = mp3_index(path)
    return None if index is None else Mp3File(path, index)


def mp3_index(path: str | Path) -> Mp3Index | None:
    """The frames of an mp3, remembered for the files that were read last; None where there are none.

    Raises:
        OSError: It cannot be read.
    """
    status = os.stat(path)
    return _index(os.fspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


# Several windows are often taken from a file one after the other.
@lru_cache(maxsize=16)
def _index(path: str, *_: int) -> Mp3Index | None:
    return index_mp3(Path(path).read_bytes())
