"""Loudness and true peaks against the values that ITU-R BS.1770 and EBU Tech 3341 state, and another oversampler."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
import soxr
import torch

from musiccm.audio.loudness import (
    RunningLoudness,
    decibels,
    frame_samples,
    loudness_lufs,
    near_silence,
    true_peak,
)


def sine(frequency_hz: float, seconds: float, rate_hz: int, level_db: float = 0.0, phase: float = 0.0) -> torch.Tensor:
    time_S = torch.arange(round(seconds * rate_hz), dtype=torch.float64) / rate_hz
    return 10 ** (level_db / 20) * torch.sin(2 * math.pi * frequency_hz * time_S + phase)


def running(sound_S: torch.Tensor, rate_hz: int, window_s: float = 60.0) -> float:
    meter, size = RunningLoudness(rate_hz, window_s), frame_samples(rate_hz)
    for frame_S in sound_S.split(size):
        if len(frame_S) == size:
            meter.push(frame_S.double().numpy())
    return meter.lufs()


@pytest.mark.parametrize(("rate_hz", "tolerance"), [(48000, 0.005), (44100, 0.005), (16000, 0.05)])
def test_a_sine_at_full_scale_in_one_channel(rate_hz: int, tolerance: float) -> None:
    """BS.1770-5, annex 1: a sine of 997 Hz at 0 dBFS in one front channel reads -3.01 LKFS.

    The standard gives its filter at 48 kHz; at 16 kHz the bilinear transform bends its shelf by some hundredths.
    """
    sound_S = sine(997, 4, rate_hz)
    assert loudness_lufs(sound_S, rate_hz) == pytest.approx(-3.01, abs=tolerance)
    assert running(sound_S, rate_hz) == pytest.approx(-3.01, abs=tolerance)
    assert loudness_lufs(sine(997, 4, rate_hz, -20), rate_hz) == pytest.approx(-23.01, abs=tolerance)


@pytest.mark.parametrize("rate_hz", [11025, 16000, 22050, 44100, 48000])
def test_sound_of_any_length_around_a_block_has_a_loudness(rate_hz: int) -> None:
    """A tone reads the same however long it is; what it is measured against is the block of 0.4 s."""
    tone_S = sine(997, 0.45, rate_hz)
    block = loudness_lufs(tone_S[: rate_hz * 2 // 5], rate_hz)
    around = range(rate_hz * 2 // 5 - 9, rate_hz * 2 // 5 + 9)
    lengths = [*range(1, 40), *range(40, len(tone_S), rate_hz // 2000), *around]
    found = {length: loudness_lufs(tone_S[:length], rate_hz) for length in lengths}
    assert all(math.isfinite(lufs) for length, lufs in found.items() if length > 1), "the tone's first sample is 0"
    assert all(lufs == pytest.approx(block, abs=0.3) for length, lufs in found.items() if length > rate_hz // 20)


def test_pauses_do_not_count() -> None:
    """EBU Tech 3341's case 3, shorter and in one channel, so 3 LU lower: -36, -23 and -36 dBFS read as -23."""
    rate_hz = 16000
    sound_S = torch.cat([sine(1000, seconds, rate_hz, level) for seconds, level in ((2, -36), (12, -23), (2, -36))])
    assert loudness_lufs(sound_S, rate_hz) == pytest.approx(-26.0, abs=0.15)
    assert running(sound_S, rate_hz) == pytest.approx(-26.0, abs=0.15)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 24000, 44100, 48000])
def test_the_loudness_is_the_library_s(rate_hz: int) -> None:
    """pyloudnorm's gating, block by block; lengths fall on either side of where it counts one more."""
    meter = pyloudnorm.Meter(rate_hz, "DeMan", 0.4)
    generator = np.random.default_rng(rate_hz)
    for seconds in (0.4, 0.449, 0.451, 1.0, *generator.uniform(0.5, 5, 6)):
        noise_S = generator.normal(size=math.ceil(rate_hz * seconds)) * generator.uniform(1e-3, 0.3)
        noise_S[len(noise_S) // 3 : len(noise_S) // 2] *= 1e-3  # a pause, which is gated
        expected = meter.integrated_loudness(noise_S)
        assert loudness_lufs(torch.from_numpy(noise_S), rate_hz) == pytest.approx(expected, abs=1e-9)


def test_the_running_meter_is_the_whole_one() -> None:
    noise_S = torch.randn(16000 * 6, dtype=torch.float64) * torch.linspace(0.001, 0.2, 16000 * 6)
    assert running(noise_S, 16000) == pytest.approx(loudness_lufs(noise_S, 16000), abs=0.01)


def test_the_running_meter_forgets() -> None:
    loud_then_soft = torch.cat([sine(997, 3, 8000, -6), sine(997, 3, 8000, -30)])
    assert running(loud_then_soft, 8000, window_s=2.0) == pytest.approx(running(sine(997, 3, 8000, -30), 8000), abs=0.1)


def test_sound_shorter_than_a_block() -> None:
    assert loudness_lufs(sine(997, 0.2, 48000), 48000) == pytest.approx(-3.01, abs=0.2)
    for nothing in (torch.zeros(0), torch.zeros(5), torch.zeros(16000)):
        assert loudness_lufs(nothing, 16000) == -math.inf


@pytest.mark.parametrize("frequency", [0.25, 0.2, 1 / 6, 0.05])
def test_peaks_between_samples(frequency: float) -> None:
    """A sine whose samples all miss its crest: at a fourth of the rate, an eighth of a period off, by 3.01 dB."""
    rate_hz = 48000
    taper = torch.hann_window(rate_hz // 10, dtype=torch.float64)
    sound_S = sine(frequency * rate_hz, 0.1, rate_hz, phase=math.pi / 4) * taper
    assert decibels(true_peak(sound_S)) == pytest.approx(0.0, abs=0.12)
    if frequency == 0.25:
        assert decibels(float(sound_S.abs().max())) == pytest.approx(-3.01, abs=0.01)


def test_true_peaks_are_those_of_another_oversampler() -> None:
    noise_S = torch.from_numpy(soxr.resample(np.random.default_rng(0).normal(size=4000), 8000, 16000))
    theirs = np.abs(soxr.resample(noise_S.numpy(), 16000, 16 * 16000, "VHQ")).max()
    assert decibels(true_peak(noise_S)) == pytest.approx(decibels(float(theirs)), abs=0.05)


def test_near_silence_is_told() -> None:
    soft_S = sine(997, 2, 16000, -70).float()
    assert near_silence(soft_S, loudness_lufs(soft_S, 16000)) == "below -70 LUFS, peak -70.0 dBFS"
    soft_S = sine(997, 2, 16000, -60).float()
    assert near_silence(soft_S, loudness_lufs(soft_S, 16000)) == "-63.0 LUFS, peak -60.0 dBFS"
    quiet_S = sine(997, 2, 16000, -50).float()
    assert near_silence(quiet_S, loudness_lufs(quiet_S, 16000)) is None
    assert near_silence(torch.full((16000,), math.nan), -math.inf) is None, "that is for the writer to refuse"
