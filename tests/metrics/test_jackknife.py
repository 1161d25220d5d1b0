"""The jackknife against closed forms: the error of a mean, and intervals that hold the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from musiccm.errors import MusiccmError
from musiccm.metrics.gaussian import frechet_distance_of_rows
from musiccm.metrics.jackknife import (
    Halved,
    covariance,
    fieller,
    interval,
    jackknife,
    mean_interval,
    ratio,
    ratio_of_means,
    splits,
)


def test_the_error_of_a_mean_is_known_and_a_pair_shares_its_halves() -> None:
    n = 64
    values = np.random.RandomState(0).randn(n)
    numbers = {f"c{i:02d}": value for i, value in enumerate(values)}

    def statistic(ids: list[str]) -> dict[str, float]:
        mean = float(np.mean([numbers[clip_id] for clip_id in ids]))
        return {"mean": mean, "difference": (mean + 1) - mean}

    found = jackknife(statistic, list(numbers), draws=4000)
    # Half-samples without replacement: their variance about the whole is s^2 / n exactly.
    assert found["mean"].error == pytest.approx(values.std(ddof=1) / n**0.5, rel=0.04)
    assert found["mean"].value == pytest.approx(values.mean())
    assert found["mean"].high - found["mean"].low == pytest.approx(2 * 1.96 * found["mean"].error, rel=2e-3)
    assert found["difference"].error < 1e-12


def test_intervals_of_a_ratio_of_excesses_hold_the_truth() -> None:
    """Two models and a perfect one that answer the same captions: the ratio of their excess distances is .25."""
    n, d, worlds, inside = 160, 3, 24, 0
    for seed in range(worlds):
        generator = torch.Generator().manual_seed(seed)
        common = 0.7 * torch.randn(n, d, generator=generator)
        sets = [common + 0.7 * torch.randn(n, d, generator=generator) + shift for shift in (0, 0, 0.8, 0.4)]
        place = {f"c{i:03d}": i for i in range(n)}

        def statistic(ids: list[str], place: dict = place, sets: list = sets) -> dict[str, float]:
            at = [place[clip_id] for clip_id in ids]
            floor, teacher, student = (frechet_distance_of_rows(sets[0][at].double(), rows[at].double())
                                       for rows in sets[1:])
            return {"ratio": (student - floor) / (teacher - floor)}

        found = jackknife(statistic, list(place), draws=40)["ratio"]
        inside += found.low <= 0.25 <= found.high
    # 95 % of them, less three standard errors of that share.
    assert inside >= worlds * 0.95 - 3 * (worlds * 0.95 * 0.05) ** 0.5


def quadratic(values_ND: np.ndarray) -> Callable[[list[str]], dict[str, float]]:
    """The squared length of the mean without its bias: a U-statistic of order two, whose variance is known."""

    def statistic(ids: list[str]) -> dict[str, float]:
        x = values_ND[[int(clip_id[1:]) for clip_id in ids]]
        n = len(x)
        return {"u": float(((x.sum(axis=0) ** 2).sum() - (x**2).sum()) / (n * (n - 1)))}

    return statistic


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_the_error_is_right_at_a_true_distance_of_zero_too(mean: float) -> None:
    """Var U = 2 d / (n (n - 1)) + 4 |m|^2 / n; the usual delete-half jackknife has three times the first term."""
    n, d, worlds = 40, 30, 100
    variances, values = [], []
    for seed in range(worlds):
        x = mean / d**0.5 + np.random.RandomState(seed).randn(n, d)
        found = jackknife(quadratic(x), [f"c{i:02d}" for i in range(n)], draws=100, seed=seed)["u"]
        variances.append(found.error**2)
        values.append(found.value)
    truth = 2 * d / (n * (n - 1)) + 4 * mean**2 / n
    # Never below half of the first-order part, hence a little too large where there is nothing else.
    assert 0.85 * truth < np.mean(variances) < (1.15 if mean else 1.4) * truth
    assert abs(np.mean(values) - mean**2) < 4 * (truth / worlds) ** 0.5


def test_a_bias_that_falls_as_one_over_n_is_taken_out_and_the_interval_reaches_the_figure() -> None:
    n = 64
    x = np.random.RandomState(0).randn(n) + 0.5

    def statistic(ids: list[str]) -> dict[str, float]:
        return {"squared": float(np.mean([x[int(clip_id[1:])] for clip_id in ids]) ** 2)}

    found = jackknife(statistic, [f"c{i:02d}" for i in range(n)], draws=4000, biased=True)["squared"]
    assert found.bias == pytest.approx(x.var(ddof=1) / n, rel=0.1)
    assert found.low <= found.value <= found.high
    exact = quadratic(x[:, None])([f"c{i:02d}" for i in range(n)])["u"]
    assert found.value - found.bias == pytest.approx(exact, rel=0.02)
    far = interval(Halved(1.0, np.array([[2.0, 2.0], [2.0, 2.001]])), smooth=False, biased=True)
    assert (far.high, far.value) == (1.0, 1.0) and far.low < 0.01


def test_fieller_is_the_set_of_ratios_that_cannot_be_told_from_the_truth() -> None:
    """Against its definition, value by value."""
    cov = np.array([[0.09, 0.02], [0.02, 0.16]])
    found = fieller(3.0, 2.0, (3.0, 2.0), cov, 1.96)
    grid = np.linspace(-10, 10, 400001)
    inside = grid[(3 - 2 * grid) ** 2 <= 1.96**2 * (cov[0, 0] - 2 * grid * cov[0, 1] + grid**2 * cov[1, 1])]
    assert (found.low, found.high) == (pytest.approx(inside.min(), abs=1e-4), pytest.approx(inside.max(), abs=1e-4))
    assert found.value == 1.5
    sure = fieller(3.0, 2.0, (3.0, 2.0), np.diag([0.09, 0.0]), 2.0)
    assert (sure.low, sure.high) == (pytest.approx(1.2), pytest.approx(1.8))


def test_no_ratio_to_what_may_be_nothing() -> None:
    for bottom, true in ((0.7, 0.7), (-2.0, 2.0), (2.0, -2.0)):
        found = fieller(3.0, bottom, (3.0, true), np.diag([0.1, 0.16]), 1.96)
        assert found[:3] == (None, None, None) and "not clearly above 0" in str(found.why)


def test_intervals_of_a_mean_and_of_a_ratio_of_means_have_their_closed_forms() -> None:
    x, y = np.random.RandomState(0).randn(2, 30) + 5
    found = mean_interval(x)
    low, high = stats.ttest_1samp(x, 0).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    ratio = ratio_of_means(x, y)
    for end in (ratio.low, ratio.high):  # Fieller's ends are where the t-test of x - r y just reaches 5 %
        assert stats.ttest_1samp(x - end * y, 0).pvalue == pytest.approx(0.05, rel=1e-6)


def test_identical_rows_have_a_ratio_of_one_and_no_error() -> None:
    figure = Halved(2.0, 2 + np.random.RandomState(0).randn(20, 2) / 9)
    same = Halved(2.0, figure.parts_P2.copy())
    for other in (figure, same):
        found = ratio(figure, other, smooth=True, biased=False)
        assert (found.value, found.low, found.high) == (1.0, pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_covariances_are_those_of_the_statistics() -> None:
    """Of two correlated means, whose covariance is known."""
    n = 50
    x = np.random.RandomState(1).randn(2, n)
    x[1] += x[0]
    halved = []
    parts = list(splits([n], 4000))
    for values in x:
        halved.append(Halved(float(values.mean()), np.array([[values[a].mean(), values[b].mean()]
                                                            for ((a, b),) in parts])))
    for smooth in (False, True):
        np.testing.assert_allclose(covariance(halved, smooth), np.cov(x) / n, rtol=0.1)


def test_bad_input() -> None:
    for ids, draws in ((["a"] * 9, 9), (list("abcdefg"), 9), (list("abcdefghi"), 1)):
        with pytest.raises(MusiccmError, match="jackknife"):
            jackknife(lambda ids: {"n": len(ids)}, ids, draws)
