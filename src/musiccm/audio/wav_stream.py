"""Writing a wav while its sound is made, to a file or a pipe."""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from musiccm.errors import MusiccmError, NotFiniteError
from musiccm.files import made_meanwhile, naming_full_disk

HEADER_BYTES, BYTES_A_SAMPLE = 44, 2
MAX_DATA_BYTES = 2**32 - 1 - (HEADER_BYTES - 8)
"""Sizes in a wav are 32-bit numbers."""

_UNKNOWN = 2**32 - 1  # what players take for "until the end"


def wav_header(sample_rate_hz: int, data_bytes: int | None) -> bytes:
    """The header of a mono 16-bit wav.

    Args:
        sample_rate_hz: Sampling rate.
        data_bytes: Bytes of sound that follow; None where that is not known.

    Returns:
        44 bytes.
    """
    riff, data = (_UNKNOWN, _UNKNOWN) if data_bytes is None else (data_bytes + HEADER_BYTES - 8, data_bytes)
    return (struct.pack("<4sI4s", b"RIFF", riff, b"WAVE")
            + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, sample_rate_hz * BYTES_A_SAMPLE,
                          BYTES_A_SAMPLE, 8 * BYTES_A_SAMPLE)
            + struct.pack("<4sI", b"data", data))


class WavStream:
    """A mono 16-bit wav that grows.

    In a file the header is put right after every chunk, so whatever ends the program leaves a wav that plays. A pipe
    gets the final sizes at once where `samples` is given, and else those that players read as "until the end".

    Args:
        target: A path, or an open binary stream that cannot seek, which is left open.
        sample_rate_hz: Sampling rate.
        samples: Samples that will be written, if known.
        replace: Whether a file that is there may be replaced.

    Raises:
        MusiccmError: A file is there that may not be replaced, a wav cannot hold that many samples, or the file cannot
            be opened.
    """

    def __init__(
        self, target: str | Path | BinaryIO, sample_rate_hz: int, samples: int | None = None, replace: bool = True
    ) -> None:
        self.name = str(target) if isinstance(target, str | Path) else "the output"
        self.sample_rate_hz = sample_rate_hz
        self._path = Path(target) if isinstance(target, str | Path) else None
        self._data_bytes = 0
        if samples is not None:
            self._require_room(samples * BYTES_A_SAMPLE)
        if self._path is not None:
            with naming_full_disk(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._file: BinaryIO = self._path.open("wb" if replace else "xb", buffering=0)
                except FileExistsError as error:
                    raise made_meanwhile(self._path) from error
        else:
            self._file = target  # type: ignore[assignment]
        expected = None if samples is None else samples * BYTES_A_SAMPLE
        self._put(wav_header(sample_rate_hz, 0 if self._path is not None else expected))

    def write(self, waveform_S: Tensor) -> None:
        """Append sound; what lies beyond [-1, 1] is clipped.

        Args:
            waveform_S: Samples of shape [S].

        Raises:
            MusiccmError: The samples are not finite, the wav would grow beyond 4 GiB, or the disk is full.
            BrokenPipeError: The reader of a pipe has gone.
        """
        if not bool(torch.isfinite(waveform_S).all()):
            raise NotFiniteError(f"{self.name}: expected finite samples, found NaN or infinity; what came before is "
                                 "kept")
        # as libsndfile rounds, so that a stream and a whole file are equal
        integers = (waveform_S.float() * 32768.0).floor().clamp(-32768, 32767).to(torch.int16).numpy().astype("<i2")
        self._require_room(self._data_bytes + integers.nbytes)
        self._put(integers.tobytes())
        self._data_bytes += integers.nbytes
        if self._path is not None:
            with naming_full_disk(self._path):
                self._file.seek(0)
                self._file.write(wav_header(self.sample_rate_hz, self._data_bytes))
                self._file.seek(0, 2)

    def close(self) -> None:
        """Close a file; a stream is flushed and left open."""
        if self._path is not None:
            self._file.close()
        else:
            self._file.flush()

    def __enter__(self) -> WavStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._path is not None:
            self.close()

    def _put(self, data: bytes) -> None:
        if self._path is None:
            self._file.write(data)
            self._file.flush()
            return
        with naming_full_disk(self._path):
            view = memoryview(data)
            while len(view):  # an unbuffered file may take a part
                view = view[self._file.write(view) :]

    def _require_room(self, data_bytes: int) -> None:
        if data_bytes > MAX_DATA_BYTES:
            hours = MAX_DATA_BYTES / BYTES_A_SAMPLE / self.sample_rate_hz / 3600
            raise MusiccmError(f"{self.name}: a wav holds at most 4 GiB, {hours:.1f} hours at {self.sample_rate_hz} "
                               "Hz; ask for less, or write several")
