"""Adversarial losses and feature matching on waveforms: values by hand, and each loss on its own side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musiccm.losses.waveform_adversarial import (
    waveform_adversarial,
    waveform_discriminator_loss,
    waveform_generator_loss,
)
from musiccm.models.spectrogram_discriminator import SpectrogramDiscriminator
from musiccm.models.waveform_discriminator import WaveformDiscriminator


class Scale(nn.Module):
    """Scores a waveform's mean, and shows the waveform itself as a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, waveform_BS: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        return [(self.gain * waveform_BS.mean(dim=1), [waveform_BS])]


def test_values_by_hand() -> None:
    real, fake = torch.full((1, 4), 0.25), torch.full((1, 4), 0.10)
    generator, loss_d, parts = waveform_adversarial(Scale(), fake, real)
    assert parts["generator"].item() == pytest.approx(1 - 0.2)
    assert parts["matching"].item() == pytest.approx(0.15 / 0.25)
    assert loss_d.item() == pytest.approx((1 - 0.5) + (1 + 0.2))
    assert generator.item() == pytest.approx(0.8 + 2 * 0.6)


def test_each_loss_leaves_gradients_on_its_own_side() -> None:
    torch.manual_seed(0)
    discriminator = SpectrogramDiscriminator((64, 128), width=4)
    real, fake = torch.randn(2, 800), torch.randn(2, 800, requires_grad=True)
    generator, loss_d, _ = waveform_adversarial(discriminator, fake, real)
    generator.backward(retain_graph=True)
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    fake.grad = None
    loss_d.backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


class Two(nn.Module):
    """Scores the mean and twice the mean; shows the waveform, and the waveform with its square."""

    def forward(self, waveform_BS: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        mean = waveform_BS.mean(dim=1)
        return [(mean, [waveform_BS]), (2 * mean, [waveform_BS, waveform_BS.square()])]


def test_least_squares_by_hand() -> None:
    """Scores 0.5 and 1 of real, 0.2 and 0.4 of generated sound; the second part matches two layers."""
    real, fake = torch.full((2, 4), 0.5), torch.full((2, 4), 0.2)
    loss_d, parts = waveform_discriminator_loss(Two(), fake, real)
    assert loss_d.item() == pytest.approx((0.25 + 0.04) + (0.0 + 0.16))
    assert (parts["score_real"].item(), parts["score_fake"].item()) == (pytest.approx(0.75), pytest.approx(0.3))
    adversarial, matching = waveform_generator_loss(Two(), fake, real)
    assert adversarial.item() == pytest.approx(0.64 + 0.36)
    assert matching.item() == pytest.approx(0.3 + (0.3 + 0.21) / 2)


def test_each_side_of_the_two_steps_leaves_gradients_on_its_own() -> None:
    torch.manual_seed(0)
    discriminator = WaveformDiscriminator((2, 3), (4, 4), ((64, 16, 64),), 4)
    real, fake = torch.randn(2, 400), torch.randn(2, 400, requires_grad=True)
    adversarial, matching = waveform_generator_loss(discriminator, fake, real)
    (adversarial + matching).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    fake.grad = None
    waveform_discriminator_loss(discriminator, fake, real)[0].backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert waveform_generator_loss(discriminator, real, real)[1].item() == 0.0
