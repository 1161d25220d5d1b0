from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from musiccm.audio import Conversion, centred_start, fixed_window, random_start, resample, scan_audio
from musiccm.audio.windows import keyed_generator, read_window
from musiccm.errors import MusiccmError


def music(samples: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise with an offset, so that both the mean and the peak need work."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool1d(noise[None], 9, 1, 4)[0] * 0.2 + 0.05


def test_window_has_no_offset_peak_one_half_and_zero_padding():
    wave = music(1000)
    window = fixed_window(wave, 1500)
    assert window.shape == (1500,)
    assert abs(float(window[:1000].mean())) < 1e-6
    assert float(window.abs().max()) == pytest.approx(0.5, abs=1e-6)
    assert torch.equal(window[1000:], torch.zeros(500))
    correlation = np.corrcoef(window[:1000].numpy(), wave.numpy())[0, 1]
    assert correlation == pytest.approx(1.0, abs=1e-6)


def test_silence_stays_silent():
    assert torch.equal(fixed_window(torch.full((100,), 0.3), 100), torch.zeros(100))


def test_centred_and_given_starts():
    wave = music(1000)
    whole = fixed_window(wave, 1000)
    assert centred_start(1000, 300) == 350
    assert torch.equal(fixed_window(wave, 300), whole[350:650])
    assert torch.equal(fixed_window(wave, 300, start=900), torch.cat([whole[900:], torch.zeros(200)]))


def test_random_start_depends_on_its_key_alone_and_covers_the_track():
    starts = [random_start(1000, 900, 7, epoch, "clip") for epoch in range(400)]
    assert starts == [random_start(1000, 900, 7, epoch, "clip") for epoch in range(400)]
    assert min(starts) < 10 and max(starts) > 90 and max(starts) <= 100
    assert random_start(1000, 900, 7, 0, "other") != starts[0] or random_start(1000, 900, 8, 0, "clip") != starts[0]
    assert random_start(900, 900, 7, 0, "clip") == 0


def test_keys_do_not_run_together():
    draws = {float(torch.rand((), generator=keyed_generator(*key))) for key in [(1, 12), (11, 2), ("1", "1", 2)]}
    assert len(draws) == 3


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("start", [None, 0, 7001, 30000])
def test_reading_a_window_equals_cutting_it_from_the_whole(tmp_path, suffix, start):
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, music(32000).numpy(), 16000)
    decoded = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    window = read_window(str(path), scan_audio(path), 8000, 16000, start)
    torch.testing.assert_close(window, fixed_window(decoded, 8000, start), atol=2e-6, rtol=0)


@pytest.mark.parametrize("resampler", ["torchaudio", "soxr"])
@pytest.mark.parametrize("native_hz", [44100, 48000, 22050, 8000, 11127])
@pytest.mark.parametrize("start", [None, 0, 7001, 16000])
def test_reading_a_resampled_window(tmp_path, native_hz, start, resampler):
    path = tmp_path / "x.wav"
    wave = music(native_hz + native_hz // 3)
    soundfile.write(path, wave.numpy(), native_hz, subtype="FLOAT")
    facts = scan_audio(path)
    levelled = (wave - wave.mean()) * (0.5 / (wave - wave.mean()).abs().max())
    whole = resample(levelled, native_hz, 16000, resampler)
    first = centred_start(len(whole), 8000) if start is None else start
    expected = torch.nn.functional.pad(whole[first : first + 8000], (0, 8000 - len(whole[first : first + 8000])))
    window = read_window(str(path), facts, 8000, 16000, start, Conversion(resampler=resampler))
    torch.testing.assert_close(window, expected, atol=2e-6, rtol=0)


def musicldm_read_wav(path, length: int, rate_hz: int = 16000) -> torch.Tensor:
    """What the data set of MusicLDM does with a file, in its order (facts of its reader, centred as in validation)."""
    decoded, native_hz = soundfile.read(path, dtype="float32", always_2d=True)
    y = torchaudio.functional.resample(torch.from_numpy(decoded.T), native_hz, rate_hz)[0]
    y = y - y.mean()
    y = y / (y.abs().max() + 1e-8) * 0.5
    start = max(0, (len(y) - length) // 2)
    y = y[start : start + length]
    return torch.nn.functional.pad(y, (0, length - len(y)))


@pytest.mark.parametrize(("native_hz", "seconds"), [(44100, 3.1), (22050, 0.4), (16000, 2.0)])
def test_musicldms_own_reading(tmp_path, native_hz, seconds):
    # the steps at both ends of a file with an offset ring in the filter: the order of the steps shows in the peak
    stereo = torch.stack([music(round(native_hz * seconds), seed) * 0.3 + 0.4 for seed in (1, 2)], 1)
    path = tmp_path / "x.wav"
    soundfile.write(path, stereo.numpy(), native_hz, subtype="FLOAT")
    parity = Conversion("first", "torchaudio", "resampled")
    window = read_window(str(path), scan_audio(path, channel="first"), 8000, 16000, None, parity)
    expected = musicldm_read_wav(path, 8000)
    torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)
    ours = read_window(str(path), scan_audio(path, channel="first"), 8000, 16000, None, Conversion("first"))
    if native_hz != 16000:
        assert (ours - expected).abs().max() > 1e-3
    mixed = read_window(str(path), scan_audio(path), 8000, 16000, None)
    assert (mixed - expected).abs().max() > 1e-2


def test_soxr_keeps_a_tone_and_the_length(tmp_path):
    t = torch.arange(44107, dtype=torch.float64) / 44100
    out = resample(torch.sin(2 * torch.pi * 1000 * t).float().expand(2, 3, -1), 44100, 16000, "soxr")
    assert out.shape == (2, 3, -(-44107 * 16000 // 44100))
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(out.shape[-1], dtype=torch.float64) / 16000).float()
    torch.testing.assert_close(out[1, 2, 300:-300], expected[300:-300], atol=1e-4, rtol=0)


@pytest.mark.parametrize("from_hz", [44099, 11127])
def test_rates_without_a_common_divisor_need_no_more_memory(from_hz):
    """44,099 Hz would cost torchaudio's filters 2.8 GB, 11,127 Hz 0.7."""
    t = torch.arange(from_hz, dtype=torch.float64) / from_hz
    tone = torch.sin(2 * torch.pi * 1000 * t).float()
    resample(tone[:100], from_hz, 16000)  # what is read on first use is no part of it
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, hard))
    try:
        out = resample(tone, from_hz, 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(16000, dtype=torch.float64) / 16000).float()
    assert out.shape == (16000,)
    torch.testing.assert_close(out[300:-300], expected[300:-300], atol=1e-3, rtol=0)
    with pytest.raises(MusiccmError, match="no gradient"):
        resample(tone.requires_grad_(), from_hz, 16000)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(1, 16000), (16000, 2 * 10**9), (0, 16000), (-44100, 16000), (1, 1)])
@pytest.mark.parametrize("resampler", ["torchaudio", "soxr"])
def test_a_ratio_that_no_sound_has_is_refused(from_hz, to_hz, resampler):
    with pytest.raises(MusiccmError, match="expected sampling rates of 1,000 to 768,000 Hz"):
        resample(torch.zeros(96000), from_hz, to_hz, resampler)


@pytest.mark.parametrize("resampler", ["torchaudio", "soxr"])
def test_windows_of_an_mp3_at_a_low_bitrate_are_those_of_its_sound(tmp_path, resampler):
    """Each would begin with damage if it were decoded from where it begins: an mp3's frames hold each other's data."""
    noise = np.random.default_rng(0).normal(size=(3 * 24000, 2)) * 0.1
    soundfile.write(tmp_path / "a.mp3", noise, 24000, bitrate_mode="CONSTANT", compression_level=0.9)
    with soundfile.SoundFile(tmp_path / "a.mp3") as file:
        soundfile.write(tmp_path / "a.wav", file.read(dtype="float32"), 24000, subtype="FLOAT")
    facts = scan_audio(tmp_path / "a.mp3")
    assert facts == scan_audio(tmp_path / "a.wav")
    how = Conversion(resampler=resampler)
    for start in range(0, 40000, 3777):
        paths = [str(tmp_path / name) for name in ("a.mp3", "a.wav")]
        coded, plain = (read_window(path, facts, 8000, 16000, start, how) for path in paths)
        assert torch.equal(coded, plain), start


@pytest.mark.parametrize("wrong", [{"channel": "left"}, {"resampler": "sox"}, {"level": "loud"}])
def test_unknown_conversions_are_refused(wrong):
    with pytest.raises(MusiccmError, match=f"{next(iter(wrong))} must be one of"):
        Conversion(**wrong)
