from __future__ import annotations

import math

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.discriminator import Discriminator, LocalBatchNorm


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 17])
def test_any_batch_size_gives_a_logit_a_token(batch: int, device: str) -> None:
    torch.manual_seed(0)
    heads = Discriminator([12, 6], 5, head_width=8).to(device)
    logits = heads([randn(batch, 7, 12).to(device), randn(batch, 3, 6).to(device)], randn(batch, 5).to(device))
    assert [logit.shape for logit in logits] == [(batch, 7), (batch, 3)]
    assert all(bool(torch.isfinite(logit).all()) for logit in logits)


def test_local_batch_norm_equals_batch_norm_of_each_group(device: str) -> None:
    x = (randn(6, 3, 5) * 4 + 2).to(device)
    ours = LocalBatchNorm(3, group_size=4).to(device)(x)
    reference = torch.nn.BatchNorm1d(3, track_running_stats=False).to(device)
    # Six samples make two groups of three, not four and two.
    torch.testing.assert_close(ours, torch.cat([reference(x[:3]), reference(x[3:])]))


def test_local_batch_norm_keeps_groups_apart_and_nothing_between_batches() -> None:
    norm = LocalBatchNorm(3, group_size=2)
    x = randn(4, 3, 5)
    y = x.clone()
    y[2:] *= 10
    torch.testing.assert_close(norm(x)[:2], norm(y)[:2])
    assert list(norm.buffers()) == []
    assert bool(torch.isfinite(norm(torch.zeros(1, 3, 1))).all())


def test_convolutions_have_unit_spectral_norm() -> None:
    torch.manual_seed(0)
    heads = Discriminator([12], 5, head_width=8)
    head = heads.heads[0]
    with torch.no_grad():
        for convolution in (head.inner.conv, head.mixing.conv, head.outer):
            convolution.parametrizations.weight.original.mul_(50)
        for _ in range(50):  # one power iteration a pass
            heads([randn(2, 7, 12)], randn(2, 5))
    heads.eval()
    for convolution in (head.inner.conv, head.mixing.conv, head.outer):
        largest = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2)
        assert float(largest) == pytest.approx(1.0, rel=0.02)


def test_score_is_the_projection_of_features_on_the_mapped_condition() -> None:
    torch.manual_seed(0)
    heads = Discriminator([12], 5, head_width=8).eval()
    features, cond = randn(3, 7, 12), randn(3, 5, seed=1)
    captured = {}
    heads.heads[0].outer.register_forward_hook(lambda m, i, out: captured.update(phi=out))
    (logits,) = heads([features], cond)
    mapped = heads.heads[0].condition(cond)
    torch.testing.assert_close(logits, torch.einsum("bcl,bc->bl", captured["phi"], mapped) / math.sqrt(8))


def test_residual_convolution_mixes_four_tokens_either_side() -> None:
    torch.manual_seed(0)
    head = Discriminator([4], 2, head_width=4).double().heads[0].eval()
    x = randn(1, 4, 21).double().requires_grad_()
    head.mixing.conv(x)[0, :, 10].sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero().flatten().tolist()
    assert touched == list(range(6, 15))


def test_double_backward_matches_numerical_gradients() -> None:
    torch.manual_seed(0)
    heads = Discriminator([3], 2, head_width=4).double().eval()
    features = randn(2, 4, 3).double().requires_grad_()
    cond = randn(2, 2).double()
    assert torch.autograd.gradgradcheck(lambda f: heads([f], cond)[0], (features,))


def test_mismatched_features_are_refused() -> None:
    heads = Discriminator([12, 6], 5)
    with pytest.raises(MusiccmError, match=r"\[12, 6\]"):
        heads([randn(2, 7, 12)], randn(2, 5))
    with pytest.raises(MusiccmError, match="condition of width 5"):
        heads([randn(2, 7, 12), randn(2, 3, 6)], randn(2, 4))
    with pytest.raises(MusiccmError, match="at least one"):
        Discriminator([], 5)
