"""The level of a stream: the same for any chunks, by what is known alone, slow, and below the ceiling."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import soxr
import torch

from musiccm.audio.level_stream import AHEAD, FIRST_GAIN_DB, LevelStream
from musiccm.audio.loudness import loudness_lufs
from musiccm.audio.output_level import CEILING_DBTP, TARGET_LUFS

RATE_HZ = 16000
#: What an output sample may depend on: the gain's look-ahead, the next frame for the limiter, and a frame to fill.
LATENCY = (AHEAD + 2) * RATE_HZ // 10


def noise(seconds: float, level: float, rate_hz: int = RATE_HZ, seed: int = 0) -> torch.Tensor:
    """Noise whose peaks are no more than 10 dB above its mean."""
    sound = np.random.default_rng(seed).uniform(-1, 1, round(seconds * rate_hz) // 2)
    return torch.from_numpy(level * soxr.resample(sound, rate_hz // 2, rate_hz)).float()


def streamed(sound_S: torch.Tensor, level: str = "loudness", chunk: int = 5000, rate_hz: int = RATE_HZ) -> torch.Tensor:
    stream = LevelStream(rate_hz, level)
    return torch.cat([*map(stream.push, sound_S.split(chunk)), stream.finish()])


def gains_db(made_S: torch.Tensor, sound_S: torch.Tensor, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Gain of each tenth of a second, but for the first and the last one, which are faded."""
    size = rate_hz // 10
    frames = [(a.double().square().mean(), b.double().square().mean())
              for a, b in zip(made_S.split(size), sound_S.split(size), strict=True)]
    return np.array([10 * math.log10(a / b) for a, b in frames[1:-1]])


@pytest.mark.parametrize("level", ["peak", "loudness"])
@pytest.mark.parametrize("rate_hz", [16000, 11127])
def test_any_chunks_make_the_same_samples(level: str, rate_hz: int) -> None:
    sound = torch.cat([noise(1.5, 0.02, rate_hz), noise(2.03, 0.4, rate_hz, 1)])
    whole = streamed(sound, level, len(sound), rate_hz)
    assert len(whole) == len(sound) and torch.isfinite(whole).all()
    for chunk in (37, 1600, 4099):
        assert torch.equal(streamed(sound, level, chunk, rate_hz), whole)


@pytest.mark.parametrize("level", [0.05, 0.9])
def test_steady_sound_comes_to_its_loudness_and_stays(level: float) -> None:
    sound = noise(14, level)
    made = streamed(sound)
    assert loudness_lufs(made[-4 * RATE_HZ :], RATE_HZ) == pytest.approx(TARGET_LUFS, abs=0.3)
    assert np.ptp(gains_db(made, sound)[60:]) < 0.1


def test_quiet_sound_is_raised_by_a_decibel_a_second_from_twelve_on() -> None:
    gains = gains_db(streamed(noise(12, 0.004)), noise(12, 0.004))
    assert gains[0] == pytest.approx(FIRST_GAIN_DB, abs=0.15)
    np.testing.assert_allclose(np.diff(gains), 0.1, atol=0.02)


def test_a_beat_does_not_pump() -> None:
    """Bursts of 0.2 s twice a second, 26 dB above what lies between them: the gain follows the whole, not the beat."""
    time_S = torch.arange(20 * RATE_HZ) / RATE_HZ
    sound = noise(20, 0.3) * torch.where(time_S % 0.5 < 0.2, 1.0, 0.05)
    gains = gains_db(streamed(sound), sound)
    assert np.ptp(gains[20:]) < 0.5


@pytest.mark.parametrize("level", ["peak", "loudness"])
def test_the_future_changes_nothing(level: str) -> None:
    past, quiet, loud = noise(3, 0.05), noise(2, 0.01, seed=1), noise(2, 0.9, seed=2)
    first, second = (streamed(torch.cat([past, rest]), level) for rest in (quiet, loud))
    known = len(past) - LATENCY
    assert torch.equal(first[:known], second[:known])
    assert not torch.equal(first[: len(past)], second[: len(past)]), "and it is down before the loud part begins"


@pytest.mark.parametrize("level", ["peak", "loudness"])
def test_a_loud_entry_stays_below_the_ceiling(level: str) -> None:
    sound = torch.cat([noise(3, 0.01), noise(2, 1.5, seed=1)])
    sound[4 * RATE_HZ] = 4.0
    made = streamed(sound, level).double().numpy()
    peak = np.abs(soxr.resample(np.pad(made, 500), RATE_HZ, 16 * RATE_HZ, "VHQ")).max()
    assert 20 * math.log10(peak) <= CEILING_DBTP


def test_the_gain_for_peaks_never_rises() -> None:
    stream, gains = LevelStream(RATE_HZ, "peak"), []
    for chunk in torch.cat([noise(2, 0.2), noise(2, 0.7, seed=1), noise(2, 0.01, seed=2)]).split(RATE_HZ // 10):
        stream.push(chunk)
        gains.append(stream.gain_db)
    moves = np.diff(gains[AHEAD + 1 :])
    assert (moves <= 0).all() and moves.sum() < -6 and moves.min() >= -2


def test_silence_sets_no_gain() -> None:
    faint = noise(2, 1e-4)
    assert torch.equal(streamed(faint), faint)
    sound = torch.cat([faint, noise(4, 0.1)])
    made = streamed(sound)
    assert torch.equal(made[: RATE_HZ], sound[: RATE_HZ])
    assert loudness_lufs(made[3 * RATE_HZ :], RATE_HZ) == pytest.approx(TARGET_LUFS, abs=0.5)
    stream = LevelStream(RATE_HZ, "none")
    assert stream.push(faint) is faint and len(stream.finish()) == 0
    assert stream.silent_so_far(10, ended=False) is None
    assert stream.silent_so_far(10, ended=True) == "below -70 LUFS at most in the first 2.0 s"


def test_ends_that_cut_a_wave_are_faded() -> None:
    sound, fade = 0.3 * torch.cos(torch.arange(3 * RATE_HZ) / 10), RATE_HZ // 100
    made = streamed(sound)
    assert made[0].abs() < 1e-3 and made[-1].abs() < 1e-3
    ratio = made[fade : RATE_HZ] / sound[fade : RATE_HZ]
    assert 0.9 < float(ratio.min() / ratio.max()), "and nothing else"
    whole = torch.cat([torch.zeros(100), sound, torch.zeros(100)])
    assert float(streamed(whole)[100].abs()) > 0.1


@pytest.mark.parametrize("length", [0, 1, 100, 1600, 5000, 11199])
def test_short_streams_keep_their_length(length: int) -> None:
    sound = noise(1, 0.1)[:length]
    made = streamed(sound, chunk=700)
    assert len(made) == length and torch.isfinite(made).all()


def test_memory_does_not_grow() -> None:
    stream, sizes = LevelStream(2000, "loudness"), []
    for _ in range(2):
        for second in noise(65, 0.1, 2000).split(2000):
            stream.push(second)
        sizes.append(len(pickle.dumps(vars(stream))))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01) and sizes[1] < 100_000
    assert 0 < stream.gain_db < 15, "also at a rate that is lower than the weighting's shelf"
