"""Music that is there, as its file holds it and as the model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from musiccm.audio.io import SILENCE_PEAK, BadAudio, open_audio
from musiccm.audio.original import Original, read_original
from musiccm.audio.resample import resample
from musiccm.audio.windows import PEAK, level
from musiccm.bounds import MAX_WHOLE_S
from musiccm.errors import MusiccmError
from musiccm.long_form.model import MusicModel


@dataclass(frozen=True)
class SourceClip:
    """Music that is there.

    Args:
        name: Its file, for messages.
        original: Its sound as it is, of which edits keep the samples.
        waveform_S: The same as the model takes it, at the model's rate: channels averaged, mean removed, peak 0.5.
        scale: What the model's level times this is the original's.
    """

    name: str
    original: Original
    waveform_S: Tensor
    scale: float

    @property
    def samples(self) -> int:
        """Its length at the model's rate."""
        return len(self.waveform_S)

    @classmethod
    def of(cls, pipeline: MusicModel, original: Original, name: str = "the clip") -> SourceClip:
        """Prepare sound for edits.

        Args:
            pipeline: The model that edits it.
            original: The sound, of any rate and number of channels.
            name: What it is called in messages.

        Returns:
            The clip.

        Raises:
            BadAudio: It is shorter than one latent frame, or its channels cancel each other.
        """
        mono_S = original.waveform_CS.mean(dim=0).float()
        peak = float((mono_S - mono_S.mean()).abs().max())
        if peak < SILENCE_PEAK:
            raise BadAudio(name, "silent", "its channels cancel each other where they are mixed into one, which the "
                                           "model reads")
        waveform_S = resample(level(mono_S), original.sample_rate_hz, pipeline.sample_rate_hz, "soxr")
        shortest = pipeline.codec.shortest_samples
        if len(waveform_S) < shortest:
            raise BadAudio(name, "too_short", f"{len(waveform_S) / pipeline.sample_rate_hz:.3f} s, expected at least "
                                              f"{shortest / pipeline.sample_rate_hz:.3f} s")
        return cls(name, original, waveform_S, peak / PEAK)


def read_clip(pipeline: MusicModel, path: str | Path) -> SourceClip:
    """Read music in any format, rate and number of channels that libsndfile decodes.

    Args:
        pipeline: The model that edits it.
        path: The file.

    Returns:
        The clip.

    Raises:
        BadAudio: The file cannot be used, or is shorter than one latent frame.
        MusiccmError: It is longer than `MAX_WHOLE_S`, or no path.
    """
    if not isinstance(path, str | PathLike):
        raise MusiccmError(f"clip: expected the path of a file, found {path!r}")
    with open_audio(path) as file:  # its header, before hours of it are decoded
        if file.frames > MAX_WHOLE_S * file.samplerate:
            raise MusiccmError(f"{path}: at most {MAX_WHOLE_S:g} s can be edited, found "
                               f"{file.frames / file.samplerate:.0f} s; cut it")
    return SourceClip.of(pipeline, read_original(path), str(path))
