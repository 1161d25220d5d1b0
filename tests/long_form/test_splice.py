"""New sound laid into a clip, against closed cases."""

from __future__ import annotations

import math

import pytest
import torch

from musiccm.long_form.splice import (
    CEILING,
    MOST_STEP_DB,
    STEP_DB,
    between,
    channel_gains,
    fade_weights,
    likeness,
    limiter_gain,
    splice,
    step_gain,
)

RATE = 16000


def tone(seconds: float, level: float, hz: float = 437.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)


def decibels(sound: torch.Tensor) -> float:
    return 20 * math.log10(float(sound.double().square().mean().sqrt()))


@pytest.mark.parametrize("level", [0.9, 0.05, 0.002])
def test_a_tone_of_another_level_is_brought_to_the_clips(level: float) -> None:
    """Whole periods on either side: the levels agree to a tenth of a decibel, in each channel."""
    clip_CS = torch.stack([tone(2, 0.4), tone(2, 0.1) + 0.05])  # an offset is no level
    model_S = tone(4, level)
    gains_C = channel_gains(clip_CS[:, :RATE], model_S[:RATE])
    assert gains_C is not None
    whole_CS, limited_db = splice(clip_CS, model_S[2 * RATE - 1600:] * gains_C[:, None], 2 * RATE - 1600, 1600, 0, RATE)
    assert limited_db == 0 and whole_CS.shape == (2, 4 * RATE)
    for channel, clip_S in zip(whole_CS, (tone(2, 0.4), tone(2, 0.1)), strict=True):
        assert decibels(channel[2 * RATE:]) == pytest.approx(decibels(clip_S), abs=0.1)


def test_a_tone_that_goes_on_in_phase_does_not_move() -> None:
    """What is one and the same on both sides fades without a change: amplitudes add to one."""
    whole = tone(3, 0.4)
    spliced, _ = splice(whole[None, :32000], whole[None, 30400:], 30400, 1600, 0, RATE)
    torch.testing.assert_close(spliced[0], whole, rtol=0, atol=1e-6)


def test_noise_that_goes_on_as_other_noise_keeps_its_power() -> None:
    generator = torch.Generator().manual_seed(0)
    clip_CS, new_CS = (0.05 * torch.randn(50, length, generator=generator) for length in (8000, 4000))
    spliced, _ = splice(clip_CS, new_CS, 2000, 2000, 2000, RATE)
    power = spliced.square().reshape(50, 20, 400).mean((0, 2)) / 0.05**2
    assert 10 * power.log10().abs().max() < 0.2, "20 stretches, of which the middle ten are the two fades"
    assert torch.equal(spliced[:, :2000], clip_CS[:, :2000]) and torch.equal(spliced[:, 6000:], clip_CS[:, 6000:])


@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_weights_keep_the_power_of_sounds_with_any_correlation(alike: float) -> None:
    out_CL, in_CL = fade_weights(1000, torch.tensor([alike]))
    power = out_CL.square() + in_CL.square() + 2 * alike * out_CL * in_CL
    torch.testing.assert_close(power, torch.ones_like(power))
    assert out_CL[0, 0] > 0.999 and out_CL[0, -1] < 0.001
    torch.testing.assert_close(out_CL.flip(-1), in_CL)


def test_correlation_against_numpys() -> None:
    first, second = torch.randn(2, 500).double(), torch.randn(2, 500).double()
    second[0] += first[0]
    first, second = (x - x.mean(-1, keepdim=True) for x in (first, second))
    found = likeness(first, second)
    expected = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(found, expected.clamp(min=0))
    assert likeness(first, -first).tolist() == [0, 0] and likeness(first, 0 * first).tolist() == [0, 0]


def test_gains_go_evenly_in_decibels() -> None:
    way = between(torch.tensor([1.0, 2.0]), torch.tensor([100.0, 2.0]), 5)
    torch.testing.assert_close(way[0], torch.tensor([1.0, 10**0.5, 10.0, 10**1.5, 100.0]))
    torch.testing.assert_close(way[1], torch.full((5,), 2.0))


@pytest.mark.parametrize("step_db", [-30.0, -9.0, -1.5, 0.0, 1.9, 2.5, 9.0, 30.0])
def test_a_step_beyond_those_of_music_is_taken_off(step_db: float) -> None:
    """Tones whose levels differ by a known step: what is left is a step of music, and no more than so much changes."""
    clip_CS = torch.stack([tone(1, 0.1), tone(1, 0.02)])
    factor = step_gain(clip_CS, clip_CS * 10 ** (step_db / 20), 1e-4)
    left_db = step_db + 20 * math.log10(factor)
    expected = math.copysign(max(min(abs(step_db), STEP_DB), abs(step_db) - MOST_STEP_DB), step_db)
    assert left_db == pytest.approx(expected, abs=0.01)
    for rest in ((1e-3 * clip_CS, clip_CS), (clip_CS, 1e-3 * clip_CS)):
        assert step_gain(*rest, 1e-2) == 1, "a rest is no step"


def test_silence_has_no_level_to_match() -> None:
    assert channel_gains(torch.zeros(2, 1000), tone(1, 0.5)[:1000]) is None
    assert channel_gains(torch.randn(2, 1000), torch.zeros(1000)) is None
    gains_C = channel_gains(torch.stack([tone(1, 0.5), torch.zeros(RATE)]), tone(1, 0.25))
    assert gains_C is not None and gains_C.tolist() == pytest.approx([2.0, 0.0])


def test_the_limiter_holds_new_sound_alone() -> None:
    """Peaks beyond the ceiling are held; what is quiet and not near them stays, as does the clip, bit for bit."""
    clip_CS = torch.stack([tone(1, 0.5), tone(1, 0.2)])
    new_CS = torch.stack([tone(1, 0.3), tone(1, 0.1)])
    new_CS[0, 8000] = 5.0
    spliced, limited_db = splice(clip_CS, new_CS, 14400, 1600, 0, RATE)
    assert torch.equal(spliced[:, :14400], clip_CS[:, :14400])
    assert spliced.abs().max() <= CEILING
    assert limited_db == pytest.approx(20 * math.log10(5 / CEILING), abs=0.01)
    far = torch.arange(1600, RATE)
    far = far[(far - 8000).abs() > 2 * 80]
    assert torch.equal(spliced[:, 14400 + far], new_CS[:, far])
    assert spliced[1, 14400 + 8000].abs() < new_CS[1, 8000].abs() + 1e-9, "both channels are held alike"


def test_a_clip_at_full_scale_is_not_touched_by_the_limiter() -> None:
    """Within the fades, only what is new is held down; new sound may be as loud as the clip is, and no louder."""
    generator = torch.Generator().manual_seed(0)
    clip_CS = torch.sign(torch.randn(2, 6000, generator=generator))
    new_CS = 3 * torch.randn(2, 4000, generator=generator)
    spliced, limited_db = splice(clip_CS, new_CS, 1000, 1600, 800, RATE)
    assert torch.equal(spliced[:, :1000], clip_CS[:, :1000]) and torch.equal(spliced[:, 5000:], clip_CS[:, 5000:])
    assert spliced.abs().max() <= 1 and limited_db > 0
    # the fade begins with the clip, which no gain moves
    torch.testing.assert_close(spliced[:, 1000:1005], clip_CS[:, 1000:1005], rtol=0, atol=0.02)


def test_a_gain_of_the_limiter_is_never_above_what_is_needed() -> None:
    generator = torch.Generator().manual_seed(1)
    held, added = (torch.randn(2, 3000, generator=generator) for _ in range(2))
    held = 0.5 * held.clamp(-1, 1)
    gain_S = limiter_gain(held, added, torch.full_like(held, 0.9), 80)
    assert ((held + gain_S * added).abs() <= 0.9 + 1e-5).all() and (gain_S >= 0).all() and (gain_S <= 1).all()
    assert gain_S.diff().abs().max() < 1 / 80, "it moves slowly"
