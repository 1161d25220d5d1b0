from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import soundfile
import torch

from musiccm.audio import BadAudio, read_audio, scan_audio, write_audio
from musiccm.audio.io import encoded_audio
from musiccm.errors import MusiccmError

RATE_HZ = 16000


def tone(seconds: float = 1.0, rate_hz: int = RATE_HZ, amplitude: float = 0.4) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05), (".mp3", 0.08)])
def test_round_trip_of_each_codec(tmp_path, suffix, tolerance):
    path = tmp_path / f"tone{suffix}"
    write_audio(path, torch.from_numpy(tone()), RATE_HZ)
    waveform, rate = read_audio(path)
    assert rate == RATE_HZ and waveform.dtype == torch.float32
    middle = slice(4000, 12000)  # lossy codecs may shift the ends
    assert np.abs(waveform.numpy()[middle] - tone()[middle]).max() < tolerance
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_range_equals_the_slice_of_the_whole(tmp_path, suffix):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ).astype(np.float32)
    soundfile.write(tmp_path / f"x{suffix}", noise, RATE_HZ)
    whole, _ = read_audio(tmp_path / f"x{suffix}")
    part, _ = read_audio(tmp_path / f"x{suffix}", start_s=1.25, duration_s=0.5)
    torch.testing.assert_close(part, whole[20000:28000], atol=1e-6, rtol=0)  # the mp3 decoder rounds differently


def test_channels_are_averaged_or_picked(tmp_path):
    stereo = np.stack([tone(), -0.5 * tone()], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, RATE_HZ, subtype="FLOAT")
    mean, _ = read_audio(tmp_path / "s.wav")
    right, _ = read_audio(tmp_path / "s.wav", channel=1)
    np.testing.assert_allclose(mean.numpy(), stereo.mean(1), atol=1e-7)
    np.testing.assert_array_equal(right.numpy(), stereo[:, 1])
    with pytest.raises(MusiccmError, match="channel"):
        read_audio(tmp_path / "s.wav", channel=2)


def bad_files(folder):
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), RATE_HZ)
    (folder / "unreadable.flac").write_bytes(b"this is not audio at all" * 20)
    soundfile.write(folder / "silent.flac", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    broken = tone()
    broken[777] = np.nan
    soundfile.write(folder / "nan.wav", broken, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "too_short.wav", tone(0.1), RATE_HZ)
    return {p.stem: p for p in folder.iterdir()} | {"missing": folder / "missing.wav"}


@pytest.mark.parametrize("reason", ["missing", "unreadable", "empty", "silent", "nan", "too_short"])
def test_bad_audio_names_the_file_and_the_reason(tmp_path, reason):
    path = bad_files(tmp_path)[reason]
    with pytest.raises(BadAudio) as caught:
        scan_audio(path, min_duration_s=0.5)
    assert caught.value.reason == reason and str(path) in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == (reason, str(caught.value))
    if reason != "too_short":
        with pytest.raises(BadAudio) as caught:
            read_audio(path)
        assert caught.value.reason == reason


def test_truncated_flac_is_unreadable(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ).astype(np.float32)
    soundfile.write(tmp_path / "x.flac", noise, RATE_HZ)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadAudio) as caught:
        scan_audio(tmp_path / "x.flac")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("rate_hz", [0, 2**32 - 1])
def test_a_rate_that_libsndfile_does_not_take_is_said(tmp_path, rate_hz):
    soundfile.write(tmp_path / "x.wav", tone(), RATE_HZ)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[24:28] = rate_hz.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(BadAudio, match=r"x\.wav: unreadable \(the header states a sampling rate"):
        read_audio(tmp_path / "x.wav")


def test_range_past_the_end(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(), RATE_HZ)
    assert len(read_audio(tmp_path / "x.wav", start_s=0.75, duration_s=9.0)[0]) == 4000
    with pytest.raises(BadAudio, match="too short"):
        read_audio(tmp_path / "x.wav", start_s=2.0)


def test_scan_facts(tmp_path):
    samples = tone(1.5, 22050) + 0.1
    soundfile.write(tmp_path / "x.wav", np.stack([samples, samples], 1), 22050, subtype="FLOAT")
    facts = scan_audio(tmp_path / "x.wav")
    assert (facts.frames, facts.sample_rate_hz, facts.channels) == (33075, 22050, 2)
    assert facts.dc == pytest.approx(samples.mean(), abs=1e-6)
    assert facts.peak == pytest.approx(np.abs(samples - samples.mean()).max(), abs=1e-6)


def test_write_refuses_nan_and_unknown_suffix(tmp_path):
    with pytest.raises(MusiccmError, match="NaN"):
        write_audio(tmp_path / "x.wav", torch.tensor([0.0, float("nan")]), RATE_HZ)
    with pytest.raises(MusiccmError, match="suffixes"):
        write_audio(tmp_path / "x.aac", torch.zeros(10), RATE_HZ)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    write_audio(path, torch.from_numpy(tone()), RATE_HZ)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MusiccmError, match=r"x\.wav.*the disk is full"):
        write_audio(path, torch.from_numpy(tone(2.0)), RATE_HZ)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("suffix", "subtype"), [(".wav", "PCM_16"), (".flac", "PCM_16"), (".ogg", None)])
def test_long_sound_is_encoded_in_blocks(suffix, subtype):
    """libsndfile's Vorbis encoder ends the process where it is given 2.9 million samples at once."""
    sound_S = torch.sin(torch.arange(2_900_000) / 11) / 2
    made = io.BytesIO(encoded_audio(sound_S, 16000, suffix, "long"))
    if subtype is not None:
        whole = io.BytesIO()
        soundfile.write(whole, sound_S.numpy(), 16000, subtype, format=suffix[1:])
        assert made.getvalue() == whole.getvalue()
    read_S, _ = soundfile.read(made, dtype="float32")
    assert len(read_S) == len(sound_S) and abs(read_S - sound_S.numpy()).mean() < 0.02
