"""Reading and writing audio files through libsndfile (wav, flac, ogg, mp3, opus), and reading others by ffmpeg."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from musiccm.audio.content import Content, content_of
from musiccm.audio.ffmpeg_formats import INSTALL, SUFFIXES, NoDecoder, NotDecoded, decoders, open_decoded
from musiccm.audio.file_part import FilePart
from musiccm.audio.mp3 import Mp3File, open_mp3
from musiccm.audio.wav_header import WavLength, wav_length
from musiccm.errors import MusiccmError, NotFiniteError
from musiccm.files import write_bytes

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
BLOCK_FRAMES = 2**14
# Ogg by other names, which libsndfile reads too.
OGG_SUFFIXES = (".ogg", ".opus", ".oga")
BAD_AUDIO_REASONS = ("missing", "unreadable", "truncated", "empty", "silent", "nan", "too_short")
# Sampling rates of sound: what a header states beyond them is damage, and resampling from there would fill the memory.
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000

# Below this peak a file is silence: one step of 16-bit audio is 3.1e-5.
SILENCE_PEAK = 1e-4
# Which samples of a file are read: the mean of its channels, or the first one as in MusicLDM's data set.
CHANNELS = ("mean", "first")

_ADVICE = {
    "missing": "expected an audio file here; check the path",
    "unreadable": "expected wav, flac, ogg or mp3 that libsndfile can decode; re-encode or remove the file",
    "truncated": "the end is missing; get the file again, or re-encode it if what is there is all that you want",
    "empty": "the file holds no samples; remove it",
    "silent": f"every sample is below {SILENCE_PEAK:g}; remove the file",
    "nan": "the file holds NaN or infinite samples; re-encode or remove it",
    "too_short": "expected longer audio; remove the file or ask for less of it",
}


def readable_suffixes() -> tuple[str, ...]:
    """Endings of the files that are read here, which depends on whether there is PyAV or ffmpeg."""
    return (*AUDIO_SUFFIXES, *OGG_SUFFIXES[1:], *(SUFFIXES if decoders() else ()))


class BadAudio(MusiccmError):
    """An audio file that cannot be used.

    Args:
        path: The file.
        reason: One of `BAD_AUDIO_REASONS`.
        detail: What was found, in a few words.
        advice: What to do, where there is more to say than the reason's own advice.
    """

    def __init__(self, path: str | Path, reason: str, detail: str = "", advice: str | None = None) -> None:
        if reason not in BAD_AUDIO_REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        self.path = Path(path)
        self.reason = reason
        self.detail = detail
        self.advice = advice
        found = f" ({detail})" if detail else ""
        super().__init__(f"{path}: {reason.replace('_', ' ')}{found}: {advice or _ADVICE[reason]}")

    def __reduce__(self) -> tuple[type[BadAudio], tuple[Path, str, str, str | None]]:
        # Loader workers send exceptions by pickle, which would otherwise call __init__ with the message alone.
        return type(self), (self.path, self.reason, self.detail, self.advice)


class _SoundWithin(soundfile.SoundFile):
    """What libsndfile finds in a part of a file, by its content alone.

    It passes over tags itself, but not over all, and not in front of every format; and where it does not know a
    content, it goes by the suffix of the name.
    """

    def __init__(self, part: FilePart) -> None:
        self._part = part
        super().__init__(part)

    def close(self) -> None:
        super().close()
        self._part.close()


def open_audio(path: str | Path) -> soundfile.SoundFile | Mp3File:
    """Open a file for decoding, whatever its name, or say why it cannot be.

    Args:
        path: The file. A name that is not UTF-8 comes as Python gives it (`surrogateescape`).

    Returns:
        The open file, at its first sample.

    Raises:
        BadAudio: The file is missing, empty or unreadable.
    """
    if not Path(path).is_file():
        raise BadAudio(path, "missing")
    try:
        if Path(path).stat().st_size == 0:
            raise BadAudio(path, "empty", "0 bytes")
        with open(path, "rb") as file:
            content = content_of(file)
            length = wav_length(file, content.offset) if content.suffix == ".wav" else None
        if content.demuxer is not None:
            opened = _open_decoded(path, content)
        elif content.foreign is not None:
            raise BadAudio(path, "unreadable", f"the content is {content.foreign}", content.advice)
        else:
            opened = _open_or_search(path, content, length)
    except soundfile.LibsndfileError as error:
        raise BadAudio(path, "unreadable", _found(error)) from error
    except (RuntimeError, OSError) as error:
        raise BadAudio(path, "unreadable", str(error).splitlines()[0]) from error
    if not MIN_RATE_HZ <= opened.samplerate <= MAX_RATE_HZ:
        opened.close()
        raise BadAudio(path, "unreadable", f"the header states a sampling rate of {opened.samplerate:,} Hz, which no "
                                           f"sound has; expected {MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} Hz")
    return opened


def _open_decoded(path: str | Path, content: Content) -> soundfile.SoundFile:
    try:
        return open_decoded(path, content.offset, str(content.demuxer))
    except NoDecoder:
        raise BadAudio(path, "unreadable", f"the content is {content.foreign}, which libsndfile does not decode",
                       f"{INSTALL}, to have it read; or {content.advice}") from None
    except NotDecoded as error:
        raise BadAudio(path, "unreadable", f"the content is {content.foreign}, which could not be decoded: {error}",
                       f"get the file again, or {content.advice}") from error


def _open_or_search(path: str | Path, content: Content, length: WavLength | None) -> soundfile.SoundFile | Mp3File:
    try:
        return _open(path, content, length)
    except soundfile.LibsndfileError:
        # An mp3 may begin with anything; its frames are looked for where nothing else can be made of the file.
        found = open_mp3(path) if content.suffix is None and Path(path).suffix.lower() == ".mp3" else None
        if found is None:
            raise
        return found


def _open(path: str | Path, content: Content, length: WavLength | None) -> soundfile.SoundFile | Mp3File:
    if content.suffix == ".mp3" and (opened := open_mp3(path)) is not None:
        return opened
    if content.frame:  # libsndfile would find no more, and its decoder would write so to the terminal
        raise BadAudio(path, "unreadable", "the content begins as an mp3, but no whole frames follow each other")
    if length is not None and length.mended is not None:
        return _SoundWithin(FilePart(path, content.offset, *length.mended))
    if content.offset or content.suffix in (None, ".mp3"):
        return _SoundWithin(FilePart(path, content.offset))
    opened = soundfile.SoundFile(os.fsencode(path))
    if content.suffix == ".wav" and opened.subtype == "MPEG_LAYER_III" and (within := open_mp3(path)) is not None:
        opened.close()  # a wav may hold an mp3's frames in place of samples
        return within
    return opened


def _found(error: soundfile.LibsndfileError) -> str:
    text = error.error_string.strip()
    if "SF_INFO struct incomplete" in text:  # its words for a rate or a number of channels of 0, or beyond its integers
        return "the header states a sampling rate or a number of channels that no sound has"
    # Its words for a content that it does not know speak of the file's name.
    unknown = not text or "does not exist" in text or "not recognised" in text
    return "the content is no format that libsndfile knows" if unknown else text


def _mix(samples_SC: np.ndarray, channel: str | int, path: str | Path) -> np.ndarray:
    if channel == "mean":
        return samples_SC[:, 0] if samples_SC.shape[1] == 1 else samples_SC.mean(axis=1, dtype=np.float32)
    channel = 0 if channel == "first" else channel
    if isinstance(channel, int) and 0 <= channel < samples_SC.shape[1]:
        return np.ascontiguousarray(samples_SC[:, channel])
    raise MusiccmError(
        f"{path}: channel must be mean, first or a channel number below {samples_SC.shape[1]}, found {channel!r}"
    )


def read_audio(
    path: str | Path,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: str | int = "mean",
    allow_silent: bool = False,
) -> tuple[Tensor, int]:
    """Decode a file, or a range of it without reading the rest.

    Args:
        path: A wav, flac, ogg or mp3 file.
        start_s: Where to start, in seconds.
        duration_s: How much to read, in seconds; None reads to the end. A range that runs past the end is cut there.
        channel: `"mean"` for the mean of all channels, `"first"`, or a channel number.
        allow_silent: Accept a range whose samples are all silence, as a rest in the music is.

    Returns:
        `(waveform_S, sample_rate_hz)`: float32 mono at the file's own rate.

    Raises:
        BadAudio: The file is missing, unreadable, empty, silent, holds NaN, or ends before `start_s`.
    """
    with open_audio(path) as file:
        rate = file.samplerate
        start = round(start_s * rate)
        frames = -1 if duration_s is None else round(duration_s * rate)
        waveform = read_frames(file, start, frames, channel, path)
        if isinstance(file, Mp3File) and duration_s is None and (wrong := file.index.cut or file.index.damage):
            log.warning("%s: %s; what is there was read", path, wrong)
    if not allow_silent and np.abs(waveform).max() < SILENCE_PEAK:
        raise BadAudio(path, "silent")
    return torch.from_numpy(waveform), rate


def read_mixes(path: str | Path, channels: Sequence[str]) -> tuple[list[Tensor], int]:
    """Decode a whole file once, and mix it in several ways.

    Args:
        path: A wav, flac, ogg or mp3 file.
        channels: Of each mix `"mean"` or `"first"`, see `read_audio`.

    Returns:
        A `waveform_S` for each, float32 at the file's own rate, and that rate.

    Raises:
        BadAudio: The file is missing, unreadable, empty or holds NaN.
    """
    with open_audio(path) as file:
        samples_SC = finite_samples(file, -1, path)
        if len(samples_SC) == 0:
            raise BadAudio(path, "empty", "0 samples")
        return [torch.from_numpy(_mix(samples_SC, channel, path)) for channel in channels], file.samplerate


def read_range(path: str | Path, start: int, frames: int, channel: str | int = "mean") -> Tensor:
    """Decode `frames` samples from sample `start`, both at the file's own rate; mono, as `channel` says."""
    with open_audio(path) as file:
        return torch.from_numpy(read_frames(file, start, frames, channel, path))


def read_frames(
    file: soundfile.SoundFile | Mp3File, start: int, frames: int, channel: str | int, path: str | Path
) -> np.ndarray:
    """Decode a range of an open file to float32 mono; `frames` = -1 reads to the end."""
    if file.frames == 0:
        raise BadAudio(path, "empty", "0 samples")
    if start >= file.frames or frames == 0:
        raise BadAudio(path, "too_short", f"{file.frames} samples, asked for samples from {start}")
    try:
        if start:
            file.seek(start)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadAudio(path, "unreadable", str(error).splitlines()[0]) from error
    waveform_S = next_frames(file, frames, channel, path)
    if len(waveform_S) == 0:
        raise BadAudio(path, "unreadable", f"no samples from {start} on, the header states {file.frames}")
    return waveform_S


def next_frames(
    file: soundfile.SoundFile | Mp3File, frames: int, channel: str | int, path: str | Path
) -> np.ndarray:
    """Decode up to `frames` samples from where the file stands, to float32 mono; none at its end."""
    return _mix(finite_samples(file, frames, path), channel, path)


def finite_samples(
    file: soundfile.SoundFile | Mp3File, frames: int, path: str | Path, dtype: str = "float32"
) -> np.ndarray:
    """Decode up to `frames` samples of every channel, [S, C], from where the file stands; -1 reads to the end."""
    try:
        samples_SC = file.read(frames, dtype=dtype, always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise BadAudio(path, "unreadable", str(error).splitlines()[0]) from error
    if not np.isfinite(samples_SC).all():
        raise BadAudio(path, "nan")
    return samples_SC


def encoded_audio(
    waveform_S: Tensor | np.ndarray, sample_rate_hz: int, suffix: str, name: str | Path
) -> memoryview:
    """Mono audio as the bytes of a file, 16-bit; ogg is Vorbis, mp3 has libsndfile's quality.

    Samples beyond [-1, 1] are clipped.

    Args:
        waveform_S: Samples of shape [S].
        sample_rate_hz: Sampling rate.
        suffix: One of `AUDIO_SUFFIXES`, which picks the format.
        name: Where it will go, for messages.

    Returns:
        The bytes.

    Raises:
        MusiccmError: The samples are not finite or not one-dimensional, or the format lacks the sampling rate.
    """
    samples = torch.as_tensor(waveform_S).detach().cpu().to(torch.float32)
    if samples.ndim != 1:
        raise MusiccmError(f"{name}: expected samples of shape [S], found shape {list(samples.shape)}; nothing was "
                           "written")
    if not bool(torch.isfinite(samples).all()):
        raise NotFiniteError(f"{name}: expected finite samples, found NaN or infinity; nothing was written")
    try:
        # Through memory, so that a full disk is an OSError with its cause; soundfile would fail an assertion.
        encoded = io.BytesIO()
        subtype = "PCM_16" if suffix in (".wav", ".flac") else None
        write_blocks(encoded, samples.clamp(-1, 1).numpy()[:, None], sample_rate_hz, subtype, suffix)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MusiccmError(f"{name}: could not be encoded: {error}; check the sampling rate of {sample_rate_hz} Hz, or "
                           "choose another format") from error
    return encoded.getbuffer()


def write_blocks(
    file: io.BytesIO, samples_SC: np.ndarray, sample_rate_hz: int, subtype: str | None, suffix: str
) -> None:
    """Encode samples a block at a time: libsndfile's Vorbis encoder ends the process at some millions of them at once.

    Args:
        file: Where the bytes go.
        samples_SC: Samples.
        sample_rate_hz: Their rate.
        subtype: libsndfile's name of the form; None for the format's own.
        suffix: Of the format.

    Raises:
        soundfile.LibsndfileError: The format does not take such samples.
    """
    with soundfile.SoundFile(file, "w", sample_rate_hz, samples_SC.shape[1], subtype, format=suffix[1:].upper()) as out:
        for first in range(0, len(samples_SC), BLOCK_FRAMES):
            out.write(samples_SC[first : first + BLOCK_FRAMES])


def write_audio(
    path: str | Path, waveform_S: Tensor | np.ndarray, sample_rate_hz: int, replace: bool = True
) -> None:
    """Write mono audio, 16-bit, in the format of the suffix, so that a killed process leaves no half file.

    Samples beyond [-1, 1] are clipped.

    Args:
        path: Where to; the suffix (.wav, .flac, .ogg, .mp3) picks the format. Missing folders are created.
        waveform_S: Samples of shape [S].
        sample_rate_hz: Sampling rate.
        replace: Whether a file that is there may be replaced.

    Raises:
        MusiccmError: The samples are not finite or not one-dimensional, the suffix is unknown, a file is there that may
            not be replaced, or the disk is full or not writable.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in AUDIO_SUFFIXES:
        raise MusiccmError(f"{path}: expected one of the suffixes {', '.join(AUDIO_SUFFIXES)}, found {suffix!r}")
    write_bytes(path, encoded_audio(waveform_S, sample_rate_hz, suffix, path), replace)
