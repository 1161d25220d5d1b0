"""Music to edit as it comes: any format, rate and number of channels; and what is refused before it costs much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_bundle import build_random_bundle

from musiccm.audio import BadAudio, LogMel
from musiccm.audio.wav_stream import wav_header
from musiccm.errors import MusiccmError
from musiccm.long_form import read_clip
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

SECONDS, TONE_HZ = 0.9, 700.0


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_random_bundle(tmp_path_factory.mktemp("bundles") / "teacher", frames=4, evaluators=False)
    return Pipeline(Bundle.from_pretrained(folder))


def tone(rate_hz: int) -> np.ndarray:
    """A tone that fades, at any rate the same."""
    time_S = np.arange(round(SECONDS * rate_hz)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * TONE_HZ * time_S) * np.exp(-time_S)


# Each pair of format and channels, and of format and rate that the format allows for, at least once.
@pytest.mark.parametrize(("suffix", "subtype", "channels", "rate_hz"), [
    ("wav", "PCM_U8", 1, 44099), ("wav", "PCM_16", 6, 11127), ("wav", "FLOAT", 2, 96000), ("wav", "PCM_16", 1, 8000),
    ("wav", "FLOAT", 6, 48000), ("flac", "PCM_16", 2, 44099), ("flac", "PCM_24", 6, 96000),
    ("flac", "PCM_S8", 1, 11127),
    ("ogg", "VORBIS", 1, 48000), ("ogg", "VORBIS", 2, 8000), ("ogg", "VORBIS", 6, 44099), ("ogg", "VORBIS", 1, 96000),
    ("mp3", "MPEG_LAYER_III", 1, 8000), ("mp3", "MPEG_LAYER_III", 2, 48000),
])
def test_any_format_channels_and_rate(
    pipeline: Pipeline, tmp_path: Path, suffix: str, subtype: str, channels: int, rate_hz: int
) -> None:
    """The tone as written at this rate is heard as the same tone written at the model's."""
    path = tmp_path / f"tune.{suffix}"
    shares = np.linspace(1.0, 0.5, channels)  # channels that differ; their mean is the tone, but for its level
    soundfile.write(path, tone(rate_hz)[:, None] * shares, rate_hz, subtype=subtype)
    clip = read_clip(pipeline, path)
    expected = torch.from_numpy(tone(16000)).float()
    assert clip.samples == pytest.approx(len(expected), abs=0 if suffix in ("wav", "flac") else 1200)
    mel_MN = LogMel(pipeline.bundle.mel)(expected * (0.5 / expected.abs().max()))
    found, wanted = LogMel(pipeline.bundle.mel)(clip.waveform_S)[10:80], mel_MN[10:80]
    strong = wanted > wanted.max() - 3
    assert strong.any(0).sum() <= 6  # a few bins: at another rate it would be others
    assert (found - wanted)[strong].abs().max() < 0.25
    assert (found.exp().sum(1) / wanted.exp().sum(1)).log().abs().max() < 0.25


@pytest.mark.parametrize("where", ["within a frame", "between frames"])
def test_a_truncated_flac_is_refused(pipeline: Pipeline, tmp_path: Path, where: str) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000)
    whole = path.read_bytes()
    frame = whole.rindex(b"\xff\xf8", 0, len(whole) * 2 // 3)  # a frame begins with these
    path.write_bytes(whole[: frame + 500 * (where == "within a frame")])
    with pytest.raises(BadAudio, match="cut.flac: unreadable"):
        read_clip(pipeline, path)


@pytest.mark.parametrize("seconds", [3601, 60_000])
def test_a_clip_that_is_too_long_is_refused_by_its_header(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav_header(8000, 16000 * seconds))
    with path.open("r+b") as file:  # a file that takes no room
        file.truncate(44 + 16000 * seconds)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(MusiccmError, match=f"long.wav: at most 3600 s can be edited, found {seconds} s"):
        read_clip(pipeline, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(pipeline: Pipeline, tmp_path: Path, value: float) -> None:
    samples = tone(16000)
    samples[777] = value
    soundfile.write(tmp_path / "odd.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(BadAudio, match="odd.wav: nan"):
        read_clip(pipeline, tmp_path / "odd.wav")


def test_channels_that_cancel_each_other(pipeline: Pipeline, tmp_path: Path) -> None:
    """The model gets their mean, which is silence."""
    soundfile.write(tmp_path / "odd.wav", np.stack([tone(16000), -tone(16000)], 1), 16000, subtype="FLOAT")
    with pytest.raises(BadAudio, match="odd.wav: silent.*cancel each other"):
        read_clip(pipeline, tmp_path / "odd.wav")
