"""What one pass over an audio file tells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musiccm.audio.io import SILENCE_PEAK, BadAudio, next_frames, open_audio
from musiccm.audio.mp3 import Mp3File

# Frames decoded at a time, so that an hour of audio does not need an hour of memory.
_BLOCK_FRAMES = 1 << 20


@dataclass(frozen=True)
class AudioFacts:
    """Enough about a file to cut normalised windows later without decoding the rest, and to recognise its audio.

    Args:
        frames: Samples a channel, at the file's own rate.
        sample_rate_hz: The file's own rate.
        channels: Channels in the file.
        dc: Mean of the samples that are read: of the channel mean, or of one channel.
        peak: Largest magnitude of them once `dc` is removed.
        digest: Hash of them, equal for the same audio in two lossless formats.
    """

    frames: int
    sample_rate_hz: int
    channels: int
    dc: float
    peak: float
    digest: str = ""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate_hz


class _Tally:
    """Length, sum, range and hash of samples that come block by block."""

    def __init__(self) -> None:
        self.frames, self.total, self.low, self.high = 0, 0.0, np.inf, -np.inf
        self.hash = hashlib.blake2b(digest_size=16)

    def add(self, block_S: np.ndarray) -> None:
        self.frames += len(block_S)
        self.total += float(block_S.sum(dtype=np.float64))
        self.low, self.high = min(self.low, float(block_S.min())), max(self.high, float(block_S.max()))
        self.hash.update(np.ascontiguousarray(block_S).data)

    def facts(self, rate_hz: int, channels: int) -> AudioFacts:
        dc = self.total / self.frames
        peak = max(self.high - dc, dc - self.low)
        return AudioFacts(self.frames, rate_hz, channels, dc, peak, self.hash.hexdigest())


def scan_audio(path: str | Path, min_duration_s: float = 0.0, channel: str | int = "mean") -> AudioFacts:
    """Decode a whole file block by block and say whether it can be used.

    Args:
        path: The file.
        min_duration_s: Shorter files are refused as `too_short`.
        channel: What is read of it: `"mean"`, `"first"`, or a channel number.

    Returns:
        The file's facts.

    Raises:
        BadAudio: With any of the reasons.
    """
    tally = _Tally()
    with open_audio(path) as file:
        if isinstance(file, Mp3File) and file.index.cut:
            raise BadAudio(path, "truncated", file.index.cut)
        if isinstance(file, Mp3File) and file.index.damage:
            raise BadAudio(path, "unreadable", file.index.damage)
        while len(block_S := next_frames(file, _BLOCK_FRAMES, channel, path)):
            tally.add(block_S)
        # libsndfile guesses the length of a layer II file; elsewhere samples that are missing are damage.
        if tally.frames < file.frames and file.format != "MP3":
            raise BadAudio(path, "unreadable", f"{tally.frames} of {file.frames} samples can be decoded")
        if tally.frames == 0:
            raise BadAudio(path, "empty", "0 samples")
        facts = tally.facts(file.samplerate, file.channels)
    if facts.peak < SILENCE_PEAK:
        raise BadAudio(path, "silent")
    if facts.duration_s < min_duration_s:
        raise BadAudio(path, "too_short", f"{facts.duration_s:.2f} s, expected at least {min_duration_s:.2f} s")
    return facts


def facts_of(waveform_S: np.ndarray, sample_rate_hz: int, channels: int) -> AudioFacts:
    """`scan_audio`'s facts of samples that were decoded already.

    Args:
        waveform_S: The whole file, mono.
        sample_rate_hz: Its rate.
        channels: Channels of the file.

    Returns:
        The facts, the same to the bit.
    """
    tally = _Tally()
    for first in range(0, len(waveform_S), _BLOCK_FRAMES):
        tally.add(waveform_S[first : first + _BLOCK_FRAMES])
    return tally.facts(sample_rate_hz, channels)
