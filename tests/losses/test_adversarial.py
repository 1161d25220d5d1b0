from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from musiccm.losses import discriminator_loss, frozen, generator_loss, r1_penalty
from musiccm.models.discriminator import Discriminator

COND = torch.tensor([[1.0, -1.0], [0.5, 2.0]])


class Linear(nn.Module):
    """Heads whose logits are `<w_k, token>`: every quantity follows by hand."""

    def __init__(self, *weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(w)) for w in weights)

    def forward(self, features: list[Tensor], cond: Tensor) -> list[Tensor]:
        return [feature @ weight for feature, weight in zip(features, self.weights, strict=True)]


def student() -> tuple[nn.Module, list[Tensor]]:
    """A stand-in for student and feature network: features of two depths, attached to its weights."""
    torch.manual_seed(0)
    network = nn.Linear(4, 6)
    features = network(torch.randn(2, 5, 4))
    return network, [features, features.tanh()[:, :3]]


def test_hinge_and_scores_by_hand() -> None:
    heads = Linear([1.0, 0.0], [0.0, 2.0])
    real = [torch.tensor([[[0.5, 9.0], [3.0, 9.0]]]), torch.tensor([[[9.0, -0.25]]])]
    fake = [torch.tensor([[[-0.5, 9.0], [-3.0, 9.0]]]), torch.tensor([[[9.0, 0.25]]])]
    total, parts = discriminator_loss(heads, real, fake, COND[:1], r1_gamma=0.1)
    # Head 1: logits real .5, 3 and fake -.5, -3: hinge (.5 + 0)/2 each. Head 2: real -.5, fake .5: 1.5 each.
    r1 = 2 * 1.0 + 4.0  # two tokens of |w| = 1, one of |w| = 2
    assert float(parts["r1"]) == pytest.approx(r1)
    assert float(total.detach()) == pytest.approx(2 * (0.25 + 1.5) + 0.1 * r1)
    assert float(parts["loss_d"]) == pytest.approx(float(total.detach()))
    assert float(parts["score_real"]) == pytest.approx((1.75 - 0.5) / 2)
    assert float(parts["score_fake"]) == pytest.approx((-1.75 + 0.5) / 2)
    assert float(parts["accuracy_real"]) == 0.5
    assert float(parts["accuracy_fake"]) == 0.5
    loss_g, parts_g = generator_loss(heads, fake, COND[:1])
    assert float(loss_g) == pytest.approx(1.75 - 0.5)
    assert set(parts_g) == {"loss_g"}
    assert set(parts) == {"loss_d", "r1", "score_real", "score_fake", "accuracy_real", "accuracy_fake"}


def test_r1_equals_finite_differences() -> None:
    torch.manual_seed(0)
    heads = Discriminator([6, 3], 2, head_width=8).double().eval()  # evaluation: no power iteration between calls

    def scores(features: list[Tensor]) -> Tensor:
        return sum(logit.sum() for logit in heads(features, COND.double()))  # type: ignore[return-value]

    features = [torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)]

    class InDouble(nn.Module):
        """`r1_penalty` works in float32; the finite differences need double precision on the same points."""

        def forward(self, features: list[Tensor], cond: Tensor) -> list[Tensor]:
            return heads([feature.double() for feature in features], cond.double())

    features = [feature.float().double() for feature in features]
    penalty, logits = r1_penalty(InDouble(), features, COND)
    total, step = 0.0, 1e-5
    with torch.no_grad():
        for feature in features:
            flat = feature.view(-1)
            for i in range(flat.numel()):
                middle = float(flat[i])
                flat[i] = middle + step
                up = float(scores(features))
                flat[i] = middle - step
                down = float(scores(features))
                flat[i] = middle
                total += ((up - down) / (2 * step)) ** 2
    assert float(penalty.detach()) == pytest.approx(total / 2, rel=1e-4)  # the mean over a batch of two
    assert [logit.shape for logit in logits] == [(2, 5), (2, 4)]


def test_r1_has_no_gradient_before_the_heads_and_one_in_them() -> None:
    network, features = student()
    heads = Discriminator([6, 6], 2, head_width=8)
    cond = COND.clone().requires_grad_()
    penalty, _ = r1_penalty(heads, features, cond)
    penalty.backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert cond.grad is None
    assert any(float(p.grad.abs().max()) > 0 for p in heads.parameters() if p.grad is not None)


def test_discriminator_loss_never_reaches_the_student() -> None:
    network, features = student()
    heads = Discriminator([6, 6], 2, head_width=8)
    total, _ = discriminator_loss(heads, features, features, COND)
    total.backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in heads.parameters())


def test_generator_loss_reaches_the_student_and_never_the_heads() -> None:
    network, features = student()
    heads = Discriminator([6, 6], 2, head_width=8)
    total, _ = generator_loss(heads, features, COND)
    assert all(parameter.requires_grad for parameter in heads.parameters())  # flags are back before the backward pass
    total.backward()
    assert all(parameter.grad is None for parameter in heads.parameters())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())


def test_descending_the_losses_moves_scores_the_right_way() -> None:
    _, features = student()
    torch.manual_seed(1)
    real = [torch.randn_like(feature) + 1.0 for feature in features]
    heads = Discriminator([6, 6], 2, head_width=8)
    optimizer = torch.optim.Adam(heads.parameters(), 1e-2)
    history = []
    for _ in range(30):
        total, parts = discriminator_loss(heads, real, features, COND)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(parts["score_real"] - parts["score_fake"]))
    assert history[-1] > history[0] + 0.5


def test_everything_is_float32_under_autocast() -> None:
    _, features = student()
    heads = Discriminator([6, 6], 2, head_width=8).eval()
    expected, _ = discriminator_loss(heads, features, features, COND)
    expected_g, _ = generator_loss(heads, features, COND)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = discriminator_loss(heads, features, features, COND)
        total_g, _ = generator_loss(heads, features, COND)
    assert total.dtype == total_g.dtype == torch.float32
    torch.testing.assert_close((total, total_g), (expected, expected_g))


def test_frozen_restores_flags_after_an_error() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(module):
        assert not module.weight.requires_grad
        raise RuntimeError
    assert module.weight.requires_grad and not module.bias.requires_grad
