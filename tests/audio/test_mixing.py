"""Equal loudness against the published curve and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from musiccm.audio.mixing import a_weighting_db, loudness_db, mix

# IEC 61672-1, table 3, rounded there; its frequencies are nominal ones (31.5 for 31.62)
CURVE = {31.5: -39.4, 63: -26.2, 100: -19.1, 250: -8.6, 500: -3.2, 1000: 0.0, 2000: 1.2, 4000: 1.0, 8000: -1.1,
         10000: -2.5}
RATE_HZ = 16000


def tone(frequency_hz, amplitude, seconds=1.0, rate_hz=RATE_HZ):
    t = torch.arange(round(seconds * rate_hz), dtype=torch.float64) / rate_hz
    return (amplitude * torch.sin(2 * math.pi * frequency_hz * t)).float()


def amplitude(waveform_S, frequency_hz):
    t = torch.arange(len(waveform_S), dtype=torch.float64) / RATE_HZ
    wave = torch.exp(-2j * math.pi * frequency_hz * t)
    return float(2 * (waveform_S.double() * wave).mean().abs())


def test_the_curve_is_the_published_one():
    found = a_weighting_db(torch.tensor(list(CURVE)))
    assert found.tolist() == pytest.approx(list(CURVE.values()), abs=0.15)
    assert a_weighting_db(torch.tensor([0.0, 1.0])).tolist() == [-80.0, -80.0]


def test_loudness_follows_the_loudest_frame():
    loud, soft = tone(1000, 0.5), tone(1000, 0.05)
    assert loudness_db(loud, RATE_HZ) - loudness_db(soft, RATE_HZ) == pytest.approx(20.0, abs=1e-6)
    assert loudness_db(torch.cat([soft, loud]), RATE_HZ) == pytest.approx(loudness_db(loud, RATE_HZ), abs=0.01)
    # 125 is a bin of a frame, 63 Hz away from where the curve is steep
    difference = loudness_db(tone(1000, 0.1), RATE_HZ) - loudness_db(tone(125, 0.1), RATE_HZ)
    assert difference == pytest.approx(16.2, abs=0.1)
    assert loudness_db(torch.zeros(100), RATE_HZ) == -80.0
    # frames are 2048 samples at 16 kHz and 4096 at 44.1 kHz: the power of a tone that fits both, by Parseval
    for rate_hz, size in ((16000, 2048), (44100, 4096)):
        expected = 10 * math.log10((size / 4 * 0.5) ** 2 * 1.5)
        frequency = round(1000 * size / rate_hz) * rate_hz / size
        assert loudness_db(tone(frequency, 0.5, 1.0, rate_hz), rate_hz) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("share", "ratio"), [(0.5, 1.0), (0.8, 4.0)])
def test_a_mixture_has_both_in_the_ratio_of_their_loudness(share, ratio):
    first, second = tone(1000, 0.05), tone(125, 0.5)
    mixed = mix(first, second, RATE_HZ, share)
    loudness = {hz: amplitude(mixed, hz) * 10 ** (float(a_weighting_db(torch.tensor(float(hz)))) / 20)
                for hz in (1000, 125)}
    assert loudness[1000] / loudness[125] == pytest.approx(ratio, rel=2e-3)
    # the same way round, whichever comes first
    assert torch.allclose(mix(second, first, RATE_HZ, 1 - share), mixed, atol=1e-6)


def test_sounds_of_equal_loudness_keep_their_power():
    first, second = tone(1000, 0.2), tone(1500, 0.2)
    mixed = mix(first, second, RATE_HZ)
    powers = [float(x.double().pow(2).mean()) for x in (first, second, mixed)]
    assert powers[2] == pytest.approx(powers[0], rel=0.02)
    silent = mix(torch.zeros(16000), first, RATE_HZ)
    assert torch.isfinite(silent).all() and not silent.abs().max() > 0.2
