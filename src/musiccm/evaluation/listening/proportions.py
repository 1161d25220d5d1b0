"""Shares of decided pairs: their interval, the sign test, and how many pairs a difference needs."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import binom, binomtest, norm

#: Two-sided level of the tests, and the power that a test is planned for.
LEVEL, POWER = 0.05, 0.8
#: With fewer decided pairs nothing is said of a share: no split of five pairs is beyond chance at 5 %, and intervals
#: of fewer than ten cover most of the range.
LEAST_DECIDED = 10


def share_of_wins(wins: int, losses: int) -> dict[str, Any]:
    """The share of wins among decided pairs, by Wilson's interval (1927) and the exact sign test.

    Both take the answers as independent. Where listeners gave several, `Resampling` gives an interval that does not.

    Args:
        wins: Pairs in which the first system was preferred.
        losses: Pairs in which the second was.

    Returns:
        `share`, `wilson_low`, `wilson_high` (95 %), `sign_test_p`, and `pairs_needed`: decided pairs that a difference
        of this size needs for 80 % power. All None where fewer than `LEAST_DECIDED` pairs were decided.
    """
    keys = ("share", "wilson_low", "wilson_high", "sign_test_p", "pairs_needed")
    decided = wins + losses
    if decided < LEAST_DECIDED:
        return dict.fromkeys(keys)
    found = binomtest(wins, decided, 0.5)
    interval = found.proportion_ci(1 - LEVEL, method="wilson")
    share = wins / decided
    return dict(zip(keys, (share, float(interval.low), float(interval.high), float(found.pvalue), pairs_needed(share)),
                    strict=True))


def pairs_needed(share: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Decided pairs that tell a share from one half, by the normal approximation of the two-sided sign test.

    Args:
        share: The true share of wins, from 0 to 1.
        power: Probability of finding the difference.
        level: Of the test, two-sided.

    Returns:
        The number; None for a share of one half, which no number of pairs tells from itself.
    """
    if share == 0.5:
        return None
    spread = norm.ppf(1 - level / 2) * 0.5 + norm.ppf(power) * math.sqrt(share * (1 - share))
    # a split as clear as 5 to 0 still has p = 0.06
    least = next(n for n in range(1, 100) if 2 * 0.5**n <= level)
    return max(least, math.ceil((spread / (share - 0.5)) ** 2))


def sign_test_power(pairs: int, share: float, level: float = LEVEL) -> float:
    """The exact probability that the two-sided sign test finds a difference.

    Args:
        pairs: Decided pairs.
        share: The true share of wins.
        level: Of the test.

    Returns:
        The power, from 0 to 1.
    """
    tail = int(binom.ppf(level / 2, pairs, 0.5))  # the fewest wins that reach the level
    if 2 * binom.cdf(tail, pairs, 0.5) > level:  # nearly always: so many are not rejected, one fewer are
        tail -= 1
    return float(binom.cdf(tail, pairs, share) + binom.sf(pairs - tail - 1, pairs, share))


def exact_pairs_needed(share: float, power: float = POWER) -> int:
    """The number of decided pairs from which the exact test keeps a power: some more than by the approximation.

    The power goes up and down from one number to the next, as the test's steps do; from this number on it stays.

    Args:
        share: The true share of wins; not one half.
        power: Probability of finding the difference.

    Returns:
        The number.
    """
    first = pairs_needed(share, power) or 1
    # the test steps about once in two pairs, and its power swings by less than a fifth more pairs make good
    beyond = [n for n in range(first, first + first // 5 + 40) if sign_test_power(n, share) < power]
    return max(beyond, default=first - 1) + 1


def power_table(ties: float = 0.0, shares: tuple[float, ...] = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8)) -> list[dict]:
    """How many pairs to ask for, before a test.

    Args:
        ties: The share of answers without a preference that is expected, from 0 to below 1.
        shares: True shares of wins among decided pairs.

    Returns:
        A row a share: `share`; `decided_pairs` for 80 % power by the normal approximation, which papers state;
        `exact_decided_pairs` by the exact test; and `pairs`, the latter with ties.
    """
    rows = []
    for share in shares:
        exact = exact_pairs_needed(share)
        rows.append({"share": share, "decided_pairs": pairs_needed(share), "exact_decided_pairs": exact,
                     "pairs": math.ceil(round(exact / (1 - ties), 6))})
    return rows
