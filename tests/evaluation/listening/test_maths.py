"""Intervals, tests, sample sizes and agreement against closed forms, exact sums and published examples."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from musiccm.evaluation.listening.agreement import krippendorff_alpha
from musiccm.evaluation.listening.proportions import (
    LEAST_DECIDED,
    pairs_needed,
    power_table,
    share_of_wins,
    sign_test_power,
)
from musiccm.evaluation.listening.resampling import Resampling


@pytest.mark.parametrize(("wins", "losses"), [(30, 20), (10, 0), (5, 5), (777 - 412, 412)])
def test_wilson_and_sign_test_are_the_closed_forms(wins: int, losses: int) -> None:
    n, z = wins + losses, 1.959963984540054
    share = wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    rarest = [math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= math.comb(n, wins)]
    found = share_of_wins(wins, losses)
    assert found["share"] == share
    assert (found["wilson_low"], found["wilson_high"]) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert found["sign_test_p"] == pytest.approx(sum(rarest) / 2**n, rel=1e-9)


def test_nothing_is_said_of_few_pairs() -> None:
    assert set(share_of_wins(LEAST_DECIDED - 1, 0).values()) == {None}
    assert share_of_wins(5, 5)["pairs_needed"] is None


def test_the_numbers_of_pairs_that_differences_need() -> None:
    # known values of the two-sided test at 5 % with 80 % power
    assert (pairs_needed(0.6), pairs_needed(0.55), pairs_needed(0.4)) == (194, 783, 194)
    assert pairs_needed(0.5) is None and pairs_needed(1.0) == 6
    rows = power_table(ties=0.2)
    assert [row["share"] for row in rows] == sorted(row["share"] for row in rows)
    for row in rows:  # the exact test takes some more than the approximation
        exact = row["exact_decided_pairs"]
        assert row["decided_pairs"] <= exact <= 1.15 * row["decided_pairs"] + 8
        assert all(sign_test_power(exact + more, row["share"]) >= 0.8 for more in range(0, 60, 9))
        assert sign_test_power(exact - 1, row["share"]) < 0.8
        assert exact <= row["pairs"] * 0.8 < exact + 0.8


@pytest.mark.parametrize(("pairs", "share"), [(6, 0.9), (12, 0.7), (25, 0.5), (41, 0.35)])
def test_power_is_the_sum_over_rejected_outcomes(pairs: int, share: float) -> None:
    rejected = [k for k in range(pairs + 1) if stats.binomtest(k, pairs).pvalue <= 0.05]
    exact = sum(math.comb(pairs, k) * share**k * (1 - share) ** (pairs - k) for k in rejected)
    assert sign_test_power(pairs, share) == pytest.approx(exact, rel=1e-9)


#: Krippendorff's example of four observers and twelve units, 0 where one gave no value.
OBSERVERS = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
                      [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0]])


def test_alpha_is_the_published_one() -> None:
    units = [[int(value) for value in column if value] for column in OBSERVERS.T]
    assert krippendorff_alpha(units, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(units, "interval") == pytest.approx(0.849, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]] * 3, "nominal") == 1.0
    assert krippendorff_alpha([["a", "a"]] * 9, "nominal") is None  # no variation: no agreement to speak of
    assert krippendorff_alpha([["a", "b"]] * 4 + [["a"]] * 50, "nominal") is None
    chance = np.random.default_rng(0).integers(0, 3, (4000, 2)).tolist()
    assert krippendorff_alpha(chance, "nominal") == pytest.approx(0.0, abs=0.03)


def test_the_interval_of_one_factor_is_that_of_its_means() -> None:
    """Where all clips are alike, what varies is the listeners' means: their bootstrap is scipy's, the interval t's."""
    means = np.random.default_rng(1).normal(60, 10, 12)
    cells = list(product(range(12), range(15)))
    values, everything = np.array([means[who] for who, _ in cells]), np.ones(180, dtype=bool)
    found = Resampling([str(who) for who, _ in cells], [str(what) for _, what in cells], seed=3, draws=8000)
    expected = stats.bootstrap((means,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(2))
    drawn = found.means(values, everything)
    assert tuple(np.percentile(drawn, [2.5, 97.5])) == pytest.approx(tuple(expected.confidence_interval), abs=0.35)
    interval = stats.t.interval(0.95, 11, means.mean(), stats.sem(means))
    assert found.interval(values, everything) == pytest.approx(interval, abs=0.1 * (interval[1] - interval[0]))


def test_the_interval_covers_what_it_says() -> None:
    """Listeners and clips that differ as much as single answers do: independent answers would have 40 %."""
    generator, covered, runs = np.random.default_rng(0), 0, 150
    who, what = np.repeat(np.arange(8), 10).astype(str), np.tile(np.arange(10), 8).astype(str)
    for run in range(runs):
        cells = generator.normal(size=(8, 1)) + generator.normal(size=(1, 10)) + generator.normal(size=(8, 10))
        low, high = Resampling(who, what, run, draws=400).interval(cells.ravel(), np.ones(80, dtype=bool))
        covered += low is not None and high is not None and low < 0 < high
    assert 0.92 <= covered / runs <= 0.995


def test_answers_in_common_widen_the_interval_and_pairs_narrow_a_difference() -> None:
    generator = np.random.default_rng(4)
    taste = generator.normal(0, 15, 10)
    cells = [(who, what, system) for who in range(10) for what in range(8) for system in range(2)]
    values = np.array([50 + taste[who] + 5 * system + generator.normal(0, 3) for who, _, system in cells])
    found = Resampling([str(cell[0]) for cell in cells], [str(cell[1]) for cell in cells], seed=5)
    second = np.array([cell[2] == 1 for cell in cells])
    low, high = found.interval(values, second)
    naive = 2 * 1.96 * values[second].std() / math.sqrt(second.sum())
    assert low is not None and high is not None and high - low > 2 * naive
    difference = found.ends(found.means(values, second) - found.means(values, ~second), second, ~second)
    assert difference[0] is not None and difference[1] is not None
    assert difference[0] < 5 < difference[1] and difference[1] - difference[0] < 4


def test_few_listeners_have_no_interval() -> None:
    found = Resampling(["a", "b", "c", "d"] * 6, [str(n // 4) for n in range(24)])
    assert found.interval(np.arange(24.0), np.ones(24, dtype=bool)) == (None, None)
