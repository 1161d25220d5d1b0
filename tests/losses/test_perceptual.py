"""The distance of features, against the cosines that it is made of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.losses.perceptual import FeatureDistance


class Rows(nn.Module):
    """Each row of `[B, 1, tokens, width]` as a token, and the same ten times as long."""

    def forward(self, z: Tensor) -> list[Tensor]:
        return [z[:, 0], 10 * z[:, 0]]


def at(*degrees: float) -> Tensor:
    """Tokens of one item, by their angle."""
    return torch.tensor([[[[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]]])


def test_it_is_the_squared_chord_between_directions_summed_over_features() -> None:
    """|u - v|^2 = 2 - 2 cos: 0 for 0 degrees, 1 for 60, 2 for 90, 4 for 180, whatever the lengths."""
    distance = FeatureDistance(Rows(), weight=0.5, element_weight=0.0)
    found = distance(torch.cat([at(0, 0), at(0, 90), 7 * at(10, 180)]), torch.cat([at(0, 60), at(0, 0), at(10, 0)]))
    # mean over two tokens, sum over two features, half the weight
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 2.0]))


def test_the_element_wise_part_joins_by_its_weight() -> None:
    x, y = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0)
    torch.testing.assert_close(FeatureDistance(Rows(), 1.0, "squared", 0.25)(x, y), torch.ones(2))
    torch.testing.assert_close(FeatureDistance(nn.Module(), 0.0, "pseudo_huber", 2.0)(x, y), torch.full((2,), 4.0),
                               rtol=0, atol=3e-3)


def test_gradients_reach_the_prediction_alone_and_turn_it_towards_the_target() -> None:
    prediction, target = at(50.0).requires_grad_(), at(0.0).requires_grad_()
    FeatureDistance(Rows(), element_weight=0.0)(prediction, target).sum().backward()
    assert target.grad is None and prediction.grad is not None
    gradient = prediction.grad.flatten()
    # d(2 - 2 cos)/d angle = 2 sin, twice for two features, at right angles to a vector of length 1
    assert float(gradient.norm()) == pytest.approx(4 * math.sin(math.radians(50)), rel=1e-5)
    assert float(gradient @ prediction.detach().flatten()) == pytest.approx(0.0, abs=1e-6)
    assert float(gradient @ at(140.0).flatten()) > 0, "the angle is lowered"


@pytest.mark.parametrize("wrong", [{"element": "l1"}, {"weight": -1.0}, {"weight": 0.0, "element_weight": 0.0}])
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(MusiccmError, match="distance"):
        FeatureDistance(Rows(), **wrong)
