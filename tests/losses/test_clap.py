"""The loss by CLAP, of vectors whose angles are known."""

import math

import pytest
import torch

from musiccm.losses.clap import clap_loss


def at(*degrees: float) -> torch.Tensor:
    """Vectors in the plane at these angles, of different lengths."""
    angles = torch.tensor([math.radians(d) for d in degrees])
    return torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1.0, len(degrees) + 1)[:, None]


def test_the_loss_is_that_of_the_angles_and_reaches_the_generated_side_alone() -> None:
    fake, text, real = at(0, 90), at(60, 90), at(180, 45)
    for tensor in (fake, text, real):
        tensor.requires_grad_()
    losses = [2 - 0.5 + 1, 2 - 1 - math.sqrt(0.5)]
    total, parts = clap_loss(fake, text, real)
    assert total.item() == pytest.approx(sum(losses) / 2)
    assert parts["clap_text"].item() == pytest.approx(0.75)
    assert parts["clap_real"].item() == pytest.approx((-1 + math.sqrt(0.5)) / 2)
    weighted, parts = clap_loss(fake, text, real, torch.tensor([5.0, 0.5], dtype=torch.float64))
    assert weighted.item() == pytest.approx((5 * losses[0] + 0.5 * losses[1]) / 2)
    assert weighted.dtype == torch.float32 and not any(part.requires_grad for part in parts.values())
    weighted.backward()
    assert fake.grad is not None and text.grad is None and real.grad is None
    # the first item turns towards its text (60 degrees): its gradient points the other way; the real one lies opposite
    assert fake.grad[0, 0].abs() < 1e-6 and fake.grad[0, 1].item() == pytest.approx(-5 / 2 * math.sin(math.pi / 3))
