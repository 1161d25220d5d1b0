"""Levels and ends of whole clips, measured by other libraries."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
import soxr
import torch

from musiccm.audio.output_level import (
    CEILING_DBTP,
    MOST_LIMITING_DB,
    TARGET_LUFS,
    faded,
    levelled,
)
from musiccm.errors import MusiccmError

RATE_HZ = 16000


def measured(sound_S: torch.Tensor) -> tuple[float, float]:
    """Loudness, and true peak by soxr's best resampler at sixteen times the rate."""
    samples = sound_S.double().numpy()
    lufs = pyloudnorm.Meter(RATE_HZ).integrated_loudness(samples)
    padded = np.pad(samples, 500)
    return lufs, 20 * math.log10(np.abs(soxr.resample(padded, RATE_HZ, 16 * RATE_HZ, "VHQ")).max())


def music(gain: float, peaks: float = 1.0) -> torch.Tensor:
    """Noise of the lower band that swells, with clicks of a height beside its deviation."""
    noise_S = torch.from_numpy(soxr.resample(np.random.default_rng(1).normal(size=2 * RATE_HZ), RATE_HZ // 2, RATE_HZ))
    noise_S = noise_S * torch.linspace(0, 2 * math.pi, len(noise_S), dtype=torch.float64).sin().abs()
    noise_S[2000::7000] = peaks
    return (gain * noise_S).float()


@pytest.mark.parametrize("gain", [0.002, 0.05, 1.0])
def test_loudness_is_reached_whatever_it_was(gain: float) -> None:
    lufs, peak_db = measured(levelled(music(gain), RATE_HZ, "loudness"))
    assert lufs == pytest.approx(TARGET_LUFS, abs=0.15) and peak_db <= CEILING_DBTP


def test_peaks_are_limited_by_six_decibels_and_no_more() -> None:
    plain = music(0.05, peaks=30.0)
    made = levelled(plain, RATE_HZ, "loudness")
    lufs, peak_db = measured(made)
    assert peak_db <= CEILING_DBTP and lufs < TARGET_LUFS - 1
    assert measured(plain)[1] - measured(plain)[0] > CEILING_DBTP + MOST_LIMITING_DB - TARGET_LUFS
    away = torch.ones(len(plain), dtype=torch.bool)
    for place in range(2000, len(plain), 7000):
        away[place - 1300 : place + 1300] = False  # 80 ms
    # where nothing is limited the clip is multiplied by one number: what puts its peaks 6 dB too high
    ratio = (made / plain)[away & (plain.abs() > 1e-3)]
    assert float(ratio.std() / ratio.mean()) < 1e-4
    assert 20 * math.log10(ratio.mean()) == pytest.approx(
        CEILING_DBTP + MOST_LIMITING_DB - 20 * math.log10(0.05 * 30.0), abs=0.05)


def test_a_clip_of_the_right_loudness_is_limited_all_the_same() -> None:
    right = levelled(music(0.05), RATE_HZ, "loudness")
    right[16000] = 1.5
    assert measured(levelled(right, RATE_HZ, "loudness"))[1] <= CEILING_DBTP


def test_a_peak_is_one_number() -> None:
    plain = music(0.05, peaks=3.0)
    made = levelled(plain, RATE_HZ, "peak")
    assert measured(made)[1] == pytest.approx(CEILING_DBTP, abs=0.1)
    middle = slice(200, -200)
    gain = float(made.abs().max() / plain.abs().max())
    torch.testing.assert_close(made[middle], plain[middle] * gain, rtol=1e-5, atol=1e-7)


def test_what_is_left_as_it_is() -> None:
    plain, faint, broken = music(0.3), music(1e-4), torch.tensor([0.0, math.nan])
    assert levelled(plain, RATE_HZ, "none") is plain
    for level in ("peak", "loudness"):
        assert torch.equal(levelled(faint, RATE_HZ, level), faint), "near silence"
        assert levelled(broken, RATE_HZ, level) is broken
        assert len(levelled(torch.zeros(0), RATE_HZ, level)) == 0
    with pytest.raises(MusiccmError, match="level: expected one of none, peak, loudness, found 'max'"):
        levelled(plain, RATE_HZ, "max")


def test_fades_only_where_a_wave_is_cut() -> None:
    length, fade = RATE_HZ, RATE_HZ // 100
    wave = 0.5 * torch.cos(torch.arange(length) / 10)  # begins on its crest
    rising = torch.linspace(0, 1, 4000) ** 2
    soft = wave * torch.cat([rising, torch.ones(length - 8000), rising.flip(0)])
    assert faded(soft, RATE_HZ) is soft
    for begins in (True, False):
        for ends in (True, False):
            sound = soft.clone()
            sound[:8000] = wave[:8000] if begins else sound[:8000]
            sound[8000:] = wave[8000:] if ends else sound[8000:]
            made = faded(sound, RATE_HZ)
            assert torch.equal(made[fade:-fade], sound[fade:-fade])
            assert torch.equal(made[:fade], sound[:fade]) != begins and torch.equal(made[-fade:], sound[-fade:]) != ends
            assert made[0].abs() < 1e-3 and made[-1].abs() < 1e-3
    shape = faded(torch.ones(length), RATE_HZ)
    assert (shape[:fade].diff() > 0).all() and shape[fade // 2 - 1 : fade // 2 + 1].mean() == pytest.approx(0.5)
    torch.testing.assert_close(shape, shape.flip(0))
    assert faded(torch.ones(101), RATE_HZ)[50] == 1, "two fades share what is shorter"
