"""Residual quantisation: exact codes of a toy codebook, an error that falls level by level."""

from __future__ import annotations

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.melody.rvq import ResidualQuantizer


def test_a_decimal_number_is_its_digits() -> None:
    """Level q holds 0 to 9 times 10^-q: the code of a sum of entries is its digits, read off by nobody's search."""
    rvq = ResidualQuantizer(4, 10, 1)
    rvq.codebooks_QKD.copy_(torch.arange(10.0)[None, :, None] * 10.0 ** -torch.arange(4.0)[:, None, None])
    # none at which rounding to the nearest would carry: digits below 5
    digits = torch.tensor([[3, 1, 4, 1], [0, 0, 0, 0], [9, 4, 4, 4], [2, 0, 3, 4]])
    values = (digits * 10.0 ** -torch.arange(4.0)).sum(1, keepdim=True)
    assert torch.equal(rvq.encode(values), digits)
    torch.testing.assert_close(rvq.decode(digits), values)
    torch.testing.assert_close(rvq.decode(digits[:, :2]), torch.tensor([[3.1], [0.0], [9.4], [2.0]]))


def test_each_level_takes_the_nearest_entry_of_what_is_left() -> None:
    rvq = ResidualQuantizer(3, 7, 5)
    rvq.codebooks_QKD.normal_()
    x = torch.randn(40, 5)
    left, expected = x.clone(), []
    for entries in rvq.codebooks_QKD:
        nearest = ((left[:, None] - entries[None]) ** 2).sum(2).argmin(1)
        expected.append(nearest)
        left = left - entries[nearest]
    assert torch.equal(rvq.encode(x), torch.stack(expected, 1))


def test_the_error_falls_with_every_level_and_new_vectors_gain_too() -> None:
    basis = torch.randn(6, 16)
    fresh = torch.nn.functional.normalize(torch.randn(600, 6) @ basis, dim=1)
    rvq = ResidualQuantizer(6, 16, 16)
    rvq.fit(fresh[:400], seed=2)
    for part in (fresh[:400], fresh[400:]):
        codes = rvq.encode(part)
        errors = [(part - rvq.decode(codes[:, : level + 1])).square().sum(1).mean().item() for level in range(6)]
        assert all(later < earlier for earlier, later in zip([1.0, *errors], errors, strict=False))
        assert errors[-1] < 0.2
    again = ResidualQuantizer(6, 16, 16)
    again.fit(fresh[:400], seed=2)
    assert torch.equal(again.codebooks_QKD, rvq.codebooks_QKD)


def test_what_does_not_fit_is_refused() -> None:
    rvq = ResidualQuantizer(2, 8, 4)
    with pytest.raises(MusiccmError, match=r"expected finite vectors \[B, 4\], found shape \(2, 5\)$"):
        rvq.encode(torch.zeros(2, 5))
    with pytest.raises(MusiccmError, match="values that are not finite"):
        rvq.encode(torch.full((2, 4), torch.nan))
    with pytest.raises(MusiccmError, match="3 different vectors for 8 codes; lower prefix_codebook"):
        rvq.fit(torch.eye(4)[:3].repeat(9, 1))
