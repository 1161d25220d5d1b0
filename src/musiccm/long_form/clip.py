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
class ClipLength:
    """How long music is that is there: what says which part of it an edit makes anew.

    Args:
        name: What it is called in messages.
        original_samples: Samples a channel.
        sample_rate_hz: Their rate.
        samples: Its length at the model's rate.
    """

    name: str
    original_samples: int
    sample_rate_hz: int
    samples: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.original_samples / self.sample_rate_hz

    @classmethod
    def of(
        cls, pipeline: MusicModel, original_samples: int, sample_rate_hz: int, name: str = "the clip"
    ) -> ClipLength:
        """The length that a model finds.

        Args:
            pipeline: The model that edits it.
            original_samples: See above.
            sample_rate_hz: See above.
            name: See above.

        Returns:
            The length.

        Raises:
            BadAudio: It is shorter than one latent frame.
        """
        rate_hz, shortest = pipeline.sample_rate_hz, pipeline.codec.shortest_samples
        samples = -(-original_samples * rate_hz // sample_rate_hz)  # as `resample` has it
        if samples < shortest:
            raise BadAudio(name, "too_short", f"{samples / rate_hz:.3f} s, expected at least "
                                              f"{shortest / rate_hz:.3f} s")
        return cls(name, original_samples, sample_rate_hz, samples)


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

    @property
    def length(self) -> ClipLength:
        """How long it is."""
        return ClipLength(self.name, self.original.samples, self.original.sample_rate_hz, self.samples)

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
        ClipLength.of(pipeline, original.samples, original.sample_rate_hz, name)
        waveform_S = resample(level(mono_S), original.sample_rate_hz, pipeline.sample_rate_hz, "soxr")
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
