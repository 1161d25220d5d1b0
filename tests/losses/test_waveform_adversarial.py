"""Hinge and feature matching on waveforms: values by hand, and each loss on its own side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musiccm.losses.waveform_adversarial import waveform_adversarial
from musiccm.models.spectrogram_discriminator import SpectrogramDiscriminator


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
