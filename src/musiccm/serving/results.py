"""Results on disk: a folder a job, with the samples as they were made, the sidecar, and what was asked for of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from musiccm.audio.io import encoded_audio
from musiccm.audio.original import encoded
from musiccm.errors import MusiccmError
from musiccm.failures import error_number
from musiccm.files import write_bytes
from musiccm.serving.errors import NoRoom, NotFound
from musiccm.serving.spectrogram import spectrogram_png
from musiccm.serving.tasks import Made
from musiccm.texts import json_text

FORMATS = ("wav", "flac", "ogg", "mp3")
_SAMPLES, _SIDECAR, _FACTS, _STAGING = "samples.wav", "sidecar.json", "facts.json", ".new"


class Results:
    """The folder of results.

    Args:
        folder: The folder; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()
        with no_room():
            folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{_STAGING}"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._sizes = {path.name: _bytes_in(path) for path in self._folders()}

    def write(self, job: str, made: Made, sidecar: dict[str, Any]) -> dict[str, Any]:
        """Keep what a job made, whole or not at all.

        Args:
            job: Its id.
            made: The sound.
            sidecar: What made it.

        Returns:
            Facts of the result.

        Raises:
            NoRoom: The disk is full or not writable.
            MusiccmError: The samples are not finite.
        """
        facts = {**sidecar["made"], **made.facts, "form": made.form}
        content = encoded(made.waveform_CS, made.sample_rate_hz, made.form or "FLOAT", ".wav", "the result")
        files = {_SAMPLES: content, _SIDECAR: (json_text(sidecar) + "\n").encode(), _FACTS: json.dumps(facts).encode()}
        staging = self.folder / f".{job}{_STAGING}"
        with no_room():
            try:
                staging.mkdir()
                for name, data in files.items():
                    (staging / name).write_bytes(data)
                    _confirm(staging / name)
                # a folder is there only where the process ended before it could say that the job is done
                shutil.rmtree(self.folder / job, ignore_errors=True)
                staging.rename(self.folder / job)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        self._sizes[job] = _bytes_in(self.folder / job)
        return facts

    def samples(self, job: str) -> Path:
        """The file of a result's samples, a wav that holds every bit.

        Raises:
            NotFound: There is no result.
        """
        return self._file(job, _SAMPLES)

    def sidecar(self, job: str) -> Path:
        """The sidecar of a result.

        Raises:
            NotFound: There is no result.
        """
        return self._file(job, _SIDECAR)

    def audio(self, job: str, form: str) -> Path:
        """A result in one of `FORMATS`, encoded at the first time that it is asked for.

        Args:
            job: Its id.
            form: The format.

        Returns:
            The file.

        Raises:
            NotFound: There is no result.
            NoRoom: The disk is full; `in_memory` needs none.
            MusiccmError: There is no such format, or it does not hold this sound.
        """
        samples = self._samples_for(job, form)
        if form == "wav" and self._facts(samples)["form"] is not None:
            return samples  # an edit's wav holds every bit already
        path = samples.with_name(f"audio.{form}")
        if path.is_file():  # nobody waits for the encoding of another
            return path
        with self._writing:
            if not path.is_file():
                self._keep(path, self._encoded(samples, f".{form}"))
        return path

    def in_memory(self, job: str, form: str) -> bytes:
        """What `audio` has in a file.

        Raises:
            NotFound: There is no result.
            MusiccmError: There is no such format, or it does not hold this sound.
        """
        return bytes(self._encoded(self._samples_for(job, form), f".{form}"))

    def spectrogram(self, job: str) -> Path:
        """A picture of a result's log-mel.

        Raises:
            NotFound: There is no result.
            NoRoom: The disk is full.
        """
        samples = self._file(job, _SAMPLES)
        path = samples.with_name("spectrogram.png")
        with self._writing:
            if not path.is_file():
                waveform_CS, rate_hz = _read(samples, "float32")
                self._keep(path, spectrogram_png(waveform_CS.mean(dim=0), rate_hz))
        return path

    def remove(self, jobs: Iterable[str]) -> None:
        """Remove results."""
        for job in jobs:
            self._sizes.pop(job, None)
            shutil.rmtree(self.folder / job, ignore_errors=True)

    def names(self) -> set[str]:
        """Ids of the jobs that have results."""
        return set(self._sizes)

    @property
    def total_bytes(self) -> int:
        """Size of all results on disk."""
        return sum(list(self._sizes.values()))

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _samples_for(self, job: str, form: str) -> Path:
        if form not in FORMATS:
            raise MusiccmError(f"format: expected one of {', '.join(FORMATS)}, found {form!r}")
        return self._file(job, _SAMPLES)

    def _encoded(self, samples: Path, suffix: str) -> bytes | memoryview:
        form = self._facts(samples)["form"]
        waveform_CS, rate_hz = _read(samples, "float64" if form in ("PCM_32", "DOUBLE") else "float32")
        if form is None:
            return encoded_audio(waveform_CS[0], rate_hz, suffix, "the result")
        return encoded(waveform_CS, rate_hz, form, suffix, "the result")

    def _facts(self, samples: Path) -> dict[str, Any]:
        return json.loads(samples.with_name(_FACTS).read_text(encoding="utf-8"))

    def _file(self, job: str, name: str) -> Path:
        path = self.folder / job / name
        if not path.is_file():
            raise NotFound("the job has no result; it may not be done, or its result was removed to make room")
        return path

    def _keep(self, path: Path, content: bytes | memoryview) -> None:
        with no_room():
            write_bytes(path, content)
        self._sizes[path.parent.name] = _bytes_in(path.parent)


def _confirm(path: Path) -> None:
    """Wait until a file is on the disk: some file systems say only now that they are full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _bytes_in(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:  # it was removed meanwhile
        return 0


def _read(samples: Path, dtype: str) -> tuple[Tensor, int]:
    """Samples of a result, silent ones too."""
    samples_SC, rate_hz = soundfile.read(samples, dtype=dtype, always_2d=True)
    return torch.from_numpy(samples_SC.T.copy()), rate_hz


class no_room:  # noqa: N801 - used as a statement
    """Turns what a full disk raises within into `NoRoom`."""

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Say that there is no room, if that is it.

        Raises:
            NoRoom: The disk is full or takes no files.
        """
        cause = error.__cause__ if isinstance(error, MusiccmError) and error.__cause__ is not None else error
        if cause is not None and (isinstance(cause, OSError) or error_number(cause) in (errno.ENOSPC, errno.EDQUOT)):
            raise NoRoom("the server's disk is full or takes no files; try again later") from error
