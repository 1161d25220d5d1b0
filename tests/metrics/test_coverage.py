"""Coverage and its kin against their definitions, and against what a perfect model must reach."""

from __future__ import annotations

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.coverage import Coverage, expected_coverage


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def figures(real: torch.Tensor, fake: torch.Tensor, k: int = 5, same: bool = False) -> dict:
    metric = Coverage(k)
    metric.update(real, [f"c{i:04d}" for i in range(len(real))], real=True)
    metric.update(fake, [f"{'c' if same else 'f'}{i:04d}" for i in range(len(fake))], real=False)
    return metric.compute()


def test_by_hand() -> None:
    # Balls of the real points, k = 1, reach 1, 1 and 3; of the generated ones .5, .5 and 5.5.
    found = figures(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.5], [1.0], [6.5]]), k=1)
    assert found["coverage"] == 1.0  # 4 by 6.5
    assert found["density"] == pytest.approx((2 + 3 + 1) / 3)
    assert found["expected"] == pytest.approx(1 - 2 / 5)
    assert found["precision"] == 1.0
    assert found["recall"] == 1.0
    far = figures(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.4], [0.5], [9.0]]), k=1)
    assert (far["coverage"], far["precision"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_a_perfect_model_covers_what_the_formula_says_paired_or_not(shared: float) -> None:
    n, draws, values = 60, 60, []
    for seed in range(draws):
        common, own, other = (rows(n, 6, 3 * seed + i) for i in range(3))
        real, fake = (shared**0.5 * common + (1 - shared) ** 0.5 * part for part in (own, other))
        values.append(figures(real, fake, same=shared > 0)["coverage"])
    found = torch.tensor(values)
    half = n // 2 if shared else n
    assert abs(float(found.mean()) - expected_coverage(half, half)) < 3.5 * float(found.std()) / draws**0.5


def test_a_model_with_one_mode_is_precise_and_covers_little() -> None:
    real = rows(200, 4, 0)
    found = figures(real, 0.1 * rows(200, 4, 1))
    assert found["precision"] > 0.9 and found["coverage"] < 0.4 and found["recall"] < 0.4


def test_bad_input() -> None:
    with pytest.raises(TooFewClips, match="found 5 and 9"):
        figures(rows(5, 2, 0), rows(9, 2, 1))
    with pytest.raises(MusiccmError, match="found 0"):
        Coverage(0)
