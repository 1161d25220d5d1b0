"""Kernel audio distance against its definition, pair by pair, and against what unbiased means."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics import KernelDistance
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.kernel import kernel_mean, median_distance


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def distance(real: torch.Tensor, fake: torch.Tensor) -> dict:
    metric = KernelDistance()
    metric.update(real, [f"r{i:04d}" for i in range(len(real))], real=True)
    metric.update(fake, [f"f{i:04d}" for i in range(len(fake))], real=False)
    return metric.compute()


def test_by_hand() -> None:
    # Reference distances 1, 1, 2: bandwidth 1. Generated points lie at 0 and 3.
    result = distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0]]))
    k = {d: math.exp(-d * d / 2) for d in range(4)}
    within = (4 * k[1] + 2 * k[2]) / 6 + k[3]
    between = (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 6
    assert result["bandwidth"] == 1.0
    assert result["kad"] == pytest.approx(100 * (within - 2 * between), rel=1e-12)
    assert (result["n"], result["n_real"], result["rows"]) == (2, 3, 2)


def test_equals_the_definition_pair_by_pair_far_from_the_origin() -> None:
    real, fake = rows(21, 4, 0) + 1e3, 1.5 * rows(17, 4, 1) + 1e3
    x, y = real.double().tolist(), fake.double().tolist()
    bandwidth = sorted(math.dist(a, b) for a, b in itertools.combinations(x, 2))[(21 * 20 // 2 - 1) // 2]

    def mean(pairs: list[tuple[list[float], list[float]]]) -> float:
        return sum(math.exp(-math.dist(a, b) ** 2 / (2 * bandwidth**2)) for a, b in pairs) / len(pairs)

    expected = mean(list(itertools.combinations(x, 2))) + mean(list(itertools.combinations(y, 2)))
    expected -= 2 * mean(list(itertools.product(x, y)))
    assert distance(real, fake)["kad"] == pytest.approx(100 * expected, rel=1e-9)


def test_blocks_and_the_share_of_rows_behind_the_median() -> None:
    a, b = rows(30, 3, 2).double(), rows(23, 3, 3).double()
    for left, right in ((a, b), (a, a)):
        clips = torch.arange(len(left)) // 2, torch.arange(len(right)) // 2
        whole = kernel_mean(left, right, *clips, 1.3)
        assert kernel_mean(left, right, *clips, 1.3, block=7) == pytest.approx(whole, rel=1e-12)
    assert median_distance(rows(3000, 8, 4), limit=500) == pytest.approx(median_distance(rows(3000, 8, 4)), rel=0.02)


def test_bandwidth_is_the_references_and_order_does_not_matter() -> None:
    real, fake = rows(40, 5, 5), rows(30, 5, 6)
    assert distance(real, 9 * fake)["bandwidth"] == distance(real, fake)["bandwidth"]
    assert distance(9 * real, fake)["bandwidth"] == pytest.approx(9 * distance(real, fake)["bandwidth"])
    metric = KernelDistance()
    for start in range(29, -1, -1):
        metric.update(fake[start : start + 1], [f"f{start:04d}"], real=False)
    metric.update(fake[:3], [f"f{i:04d}" for i in range(3)], real=False)
    metric.update(real, [f"r{i:04d}" for i in range(40)], real=True)
    assert metric.compute() == distance(real, fake)


def test_is_zero_on_average_for_two_halves_of_one_world_however_few() -> None:
    for n in (5, 40):
        values = torch.tensor([distance(rows(n, 6, 2 * s), rows(n, 6, 2 * s + 1))["kad"] for s in range(200)])
        assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert distance(rows(40, 6, 0), rows(40, 6, 1) + 1)["kad"] > 5


def paired(n: int, d: int, shared: float, shift: float, seed: int) -> dict:
    """The figure of two sets that share a part of their variance clip by clip, as answers to the same captions do."""
    common, own, other = (rows(n, d, 3 * seed + i) for i in range(3))
    real, fake = (shared**0.5 * common + (1 - shared) ** 0.5 * part for part in (own, other))
    metric, ids = KernelDistance(), [f"c{i:04d}" for i in range(n)]
    metric.update(real, ids, real=True)
    metric.update(fake + shift, ids, real=False)
    return metric.compute()


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_paired_sets_have_the_distance_of_their_distributions(shared: float, shift: float) -> None:
    """Against the closed form of two Gaussians: what the sets share changes nothing but the noise."""
    n, d, draws = 48, 8, 150
    found = [paired(n, d, shared, shift, seed) for seed in range(draws)]
    error = []
    for result in found:
        h2 = result["bandwidth"] ** 2
        between = (h2 / (h2 + 2)) ** (d / 2)
        error.append(result["kad"] - 200 * between * (1 - math.exp(-d * shift**2 / (2 * (h2 + 2)))))
    values = torch.tensor(error)
    assert abs(float(values.mean())) < 3.5 * float(values.std()) / draws**0.5


def test_rows_of_one_clip_are_no_independent_draws() -> None:
    """Each clip with its row twice has the same mean over pairs, where counting the equal rows would raise it."""
    x, y = rows(20, 4, 0).double(), rows(17, 4, 1).double()
    of_x, of_y = torch.arange(20), torch.arange(17) + 5
    for a, b, of_a, of_b in ((x, y, of_x, of_y), (x, x, of_x, of_x)):
        twice = a.repeat_interleave(2, 0)
        other = twice if b is a else b.repeat_interleave(2, 0)
        of = of_a.repeat_interleave(2), of_b.repeat_interleave(2)
        assert kernel_mean(twice, other, *of, 1.3) == pytest.approx(kernel_mean(a, b, of_a, of_b, 1.3), rel=1e-12)


def test_bad_input() -> None:
    with pytest.raises(TooFewClips, match="found 3 and 1"):
        distance(rows(3, 2, 0), rows(1, 2, 1))
    with pytest.raises(MusiccmError, match="found 2 and 3"):
        distance(rows(3, 2, 0), rows(3, 3, 1))
    with pytest.raises(MusiccmError, match="most of them equal"):
        distance(torch.zeros(4, 2), rows(3, 2, 1))
    with pytest.raises(MusiccmError, match="f0001"):
        distance(rows(3, 2, 0), torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
