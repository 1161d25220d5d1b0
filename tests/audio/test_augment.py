"""Degradations: bounds, keyed draws, and what each does to a mel that can be worked out by hand."""

import math
from dataclasses import replace

import torch

from musiccm.audio.augment import Degradation, degrade

NOTHING = Degradation(gain=0.0, blur_bins=0.0, blur_frames=0.0, grain=0.0, share=0.0)


def draw(mel, settings, seed=0):
    return degrade(mel, settings, torch.Generator().manual_seed(seed))


def test_nothing_asked_for_changes_nothing():
    mel = torch.randn(3, 20, 8)
    torch.testing.assert_close(draw(mel, NOTHING), mel)


def test_gain_is_one_number_a_clip_within_its_bound():
    mel = torch.randn(16, 10, 4)
    shift = draw(mel, Degradation(gain=0.5, share=0.0)) - mel
    assert shift.abs().max() <= 0.5 and (shift.amax((1, 2)) - shift.amin((1, 2))).max() < 1e-5
    assert shift[:, 0, 0].std() > 0.1


def test_floor_adds_energies():
    mel = torch.full((4, 6, 3), -6.0)
    settings = replace(NOTHING, floor_low=-6.0, floor_high=-6.0, share=1.0)
    torch.testing.assert_close(draw(mel, settings), torch.full((4, 6, 3), -6.0 + math.log(2)), atol=1e-4, rtol=0)


def test_blur_keeps_the_mean_of_a_peak_and_lowers_it():
    mel = torch.zeros(1, 41, 41)
    mel[0, 20, 20] = 1.0
    settings = Degradation(gain=0.0, floor_low=-99.0, floor_high=-99.0, grain=0.0, share=1.0)
    blurred = draw(mel, settings)
    assert math.isclose(blurred.sum().item(), 1.0, abs_tol=1e-3) and blurred.max() < 0.9


def test_the_same_generator_gives_the_same_degradation():
    mel = torch.randn(2, 30, 8)
    assert torch.equal(draw(mel, Degradation(), 3), draw(mel, Degradation(), 3))
    assert not torch.equal(draw(mel, Degradation(), 3), draw(mel, Degradation(), 4))
