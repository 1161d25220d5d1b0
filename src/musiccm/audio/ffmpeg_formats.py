"""What libsndfile does not decode and ffmpeg's libraries do: m4a, aac, webm.

Through PyAV (`pip install "musiccm[formats]"`), or the ffmpeg program. The sound is decoded whole, to a file of floats
that has no name any more, and is read from there as any other. Which container it is our own look at its first bytes
has decided, so that no playlist in disguise leads to other files or addresses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from musiccm.audio.file_part import FilePart

PROGRAM = "ffmpeg"
SUFFIXES = (".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka")
INSTALL = 'pip install "musiccm[formats]" (PyAV), or install the program ffmpeg'


class NoDecoder(Exception):
    """Neither PyAV nor the ffmpeg program is here."""


class NotDecoded(Exception):
    """What is here cannot decode the file; says why."""


def decoders() -> list[str]:
    """What is here to decode with: of `PyAV` and `ffmpeg`."""
    here = {"PyAV": _pyav() is not None, PROGRAM: shutil.which(PROGRAM) is not None}
    return [name for name in here if here[name]]


def open_decoded(path: str | Path, offset: int, demuxer: str) -> soundfile.SoundFile:
    """Decode a file, and open what came out.

    Args:
        path: The file.
        offset: Where its content begins, behind tags.
        demuxer: ffmpeg's name of the container.

    Returns:
        An open file of 32-bit floats, at its first sample; its space is freed when it is closed.

    Raises:
        NoDecoder: There is nothing to decode with.
        NotDecoded: The file is damaged, or holds no sound.
        OSError: The file cannot be read, or the disk is full.
    """
    av, program = _pyav(), shutil.which(PROGRAM)
    if av is None and program is None:
        raise NoDecoder
    handle, name = tempfile.mkstemp(prefix="musiccm-", suffix=".w64")
    os.close(handle)
    try:
        if av is not None:
            with FilePart(path, offset) as file:
                _decode(av, file, demuxer, name)
        else:
            _run(str(program), path, demuxer, name)
        return soundfile.SoundFile(name)
    finally:
        os.unlink(name)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        return None
    return av


def _decode(av: Any, file: BinaryIO, demuxer: str, target: str) -> None:
    """By PyAV; frames that are damaged end it, as they would leave a gap."""
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(file, format=demuxer))
            if not container.streams.audio:
                raise NotDecoded("it holds no sound")
            stream = container.streams.audio[0]
            sound: soundfile.SoundFile | None = None
            resampler: Any = None
            left = _stated_samples(stream) if demuxer == "mov" else None
            for frame in container.decode(stream):
                if sound is None:
                    resampler = av.AudioResampler(format="flt", layout=frame.layout.name, rate=frame.sample_rate)
                    channels = len(frame.layout.channels)
                    sound = stack.enter_context(
                        soundfile.SoundFile(target, "w", frame.sample_rate, channels, "FLOAT", format="W64"))
                for piece in resampler.resample(frame):
                    samples_SC = np.ascontiguousarray(piece.to_ndarray()).reshape(-1, sound.channels)[:left]
                    left = None if left is None else left - len(samples_SC)
                    sound.write(samples_SC)
            if sound is None:
                raise NotDecoded("it holds no samples")
        except (av.error.FFmpegError, ValueError) as error:  # the latter where its rate or channels change on the way
            raise NotDecoded(str(error).splitlines()[0]) from error


def _stated_samples(stream: Any) -> int | None:
    """Samples of a track of an MP4, whose coder fills its last frame up; None where it states none."""
    return round(stream.duration * stream.time_base * stream.rate) if stream.duration and stream.rate else None


def _run(program: str, path: str | Path, demuxer: str, target: str) -> None:
    """By the program, which passes over tags itself."""
    command: list[str | bytes]
    command = [program, "-nostdin", "-v", "error", "-xerror", "-y", "-protocol_whitelist", "file", "-f", demuxer,
               "-i", b"file:" + os.fsencode(path), "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "w64", target]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise NotDecoded(lines[-1] if lines else f"{program} ended with {done.returncode}")
