from __future__ import annotations

import math

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.losses import distance, distillation_loss


def test_closed_forms() -> None:
    prediction, target = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    total, parts = distillation_loss(prediction, target, "squared")
    assert float(total) == pytest.approx(4.5)
    assert float(parts["loss_distil"]) == float(total)
    total, _ = distillation_loss(prediction, target, "pseudo_huber", huber_h=4.0)
    assert float(total) == pytest.approx((5.0 - 4.0) / 2)


def test_pseudo_huber_is_absolute_far_out_and_quadratic_near_zero() -> None:
    h = 1e-3
    errors = torch.tensor([1.0, 1e-5], dtype=torch.float64)
    far, near = distance(errors, torch.zeros(2, dtype=torch.float64), huber_h=h)
    assert float(far) == pytest.approx(math.hypot(1.0, h) - h)
    assert float(near) == pytest.approx(1e-10 / (2 * h), rel=1e-3)


def test_gradient_reaches_the_prediction_alone_and_is_finite_at_zero_error() -> None:
    prediction = torch.zeros(2, 3, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, -1.0]] * 2, requires_grad=True)
    total, parts = distillation_loss(prediction, target)
    total.backward()
    assert target.grad is None
    assert not parts["loss_distil"].requires_grad
    torch.testing.assert_close(prediction.grad, torch.tensor([[0.0, -1.0, 1.0]] * 2) / 6, rtol=1e-5, atol=0)


def test_low_precision_is_raised_to_float32() -> None:
    prediction = torch.ones(2, 3, dtype=torch.bfloat16)
    total, _ = distillation_loss(prediction, prediction * 0, "squared")
    assert total.dtype == torch.float32
    assert float(total) == 1.0


def test_items_have_their_weights_by_any_distance() -> None:
    prediction, target, weight = torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.zeros(2, 2), torch.tensor([2.0, 0.5])
    for kind in ("squared", lambda p, t: (p - t).square(), lambda p, t: (p - t).square().mean(1)):
        total, _ = distillation_loss(prediction, target, kind, weight_B=weight)
        assert float(total) == pytest.approx((2.0 * 5.0 + 0.5 * 4.0) / 2)
    with pytest.raises(MusiccmError, match=r"distances of each of 2 items.*found them of shape \(\)"):
        distillation_loss(prediction, target, lambda p, t: (p - t).square().mean(), weight_B=weight)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MusiccmError, match="l1"):
        distance(torch.zeros(1), torch.zeros(1), "l1")
    with pytest.raises(MusiccmError, match="shapes"):
        distance(torch.zeros(1), torch.zeros(2))
