"""The discriminators of waveforms: what each of them can see."""

from __future__ import annotations

import pytest
import torch

from musiccm.models.spectrogram_discriminator import MagnitudeDiscriminator
from musiccm.models.waveform_discriminator import PeriodDiscriminator, WaveformDiscriminator


def test_a_period_discriminator_keeps_phases_apart() -> None:
    discriminator, sound = PeriodDiscriminator(5, (4, 8)), torch.randn(1, 500)
    other = sound.clone()
    other[0, 5 * 40 + 3] += 1.0
    with torch.no_grad():
        (score, features), (changed, _) = discriminator(sound), discriminator(other)
    # 100 rows; two layers with a stride of 3
    assert score.shape == (1, 1, 12, 5) and [f.shape[1:3] for f in features] == [(4, 34), (8, 12), (8, 12)]
    assert (score != changed).any(dim=2).flatten().tolist() == [False, False, False, True, False]


def test_a_period_that_does_not_divide_the_length_is_reflected() -> None:
    discriminator, sound = PeriodDiscriminator(3, (4,)), torch.randn(2, 100)
    longer = torch.cat([sound, sound[:, [-2, -3]]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(discriminator(sound)[0], discriminator(longer)[0])


def test_a_magnitude_discriminator_knows_no_sign() -> None:
    discriminator, sound = MagnitudeDiscriminator(64, 16, 48, 4), torch.randn(1, 320)
    with torch.no_grad():
        (score, features), (flipped, _), (louder, _) = (discriminator(x) for x in (sound, -sound, 2 * sound))
    # 21 frames; 33 bins, halved three times
    assert score.shape == (1, 1, 21, 5) and [f.shape[3] for f in features] == [33, 17, 9, 5, 5]
    torch.testing.assert_close(score, flipped)
    assert (score - louder).abs().max() > 1e-3


def test_a_silent_waveform_has_finite_gradients() -> None:
    silent = torch.zeros(1, 320, requires_grad=True)
    MagnitudeDiscriminator(64, 16, 48, 4)(silent)[0].sum().backward()
    assert silent.grad is not None and torch.isfinite(silent.grad).all()


def test_the_full_size_has_five_periods_and_three_resolutions() -> None:
    """HiFi-GAN's has 41.1 M parameters; UnivNet's are small beside it."""
    with torch.device("meta"):
        discriminator = WaveformDiscriminator()
        periods = WaveformDiscriminator(resolutions=())
    assert len(discriminator.parts) == 8 and len(periods.parts) == 5
    assert sum(p.numel() for p in periods.parameters()) == pytest.approx(41.1e6, rel=0.002)
