"""Intervals of figures that are taken from the same clips: the jackknife over halves of the clip ids.

The clips are split in two at random, again and again, and every figure is taken of both halves. With T of all clips,
A and B of the halves, (A - B) / 2 varies over the splits by what a clip adds by itself, exactly as for a mean, and by
twice the variance of what pairs of clips add (Hoeffding's second term); (A + B) / 2 varies by the latter alone. The
difference of these variances is therefore that of T for any statistic of second order (a kernel distance, a Frechet
distance), at a true distance of zero as well, where the delete-half jackknife of Shao and Wu (1989, Annals of
Statistics 17), which is their sum, is three times too large. The mean of A and B, less T, is the bias that falls as
1/n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.stats import t as student

from musiccm.errors import MusiccmError

#: Share of intervals that hold the truth.
LEVEL = 0.95
#: Clips below which halves are too small to say anything.
FEWEST = 8


class Interval(NamedTuple):
    """A figure with its uncertainty.

    Args:
        value: Of all clips.
        error: Its standard error.
        low: End of the 95 % interval of what endless clips would give.
        high: Its other end.
        bias: What the number of clips adds to the value, where that was estimated: the interval is of the truth, so it
            is centred on the value less the bias, and stretched to the value where that lies outside.
    """

    value: float
    error: float
    low: float
    high: float
    bias: float = 0.0


class Ratio(NamedTuple):
    """A ratio with Fieller's interval.

    Args:
        value: None where the denominator is not clearly above zero.
        low: End of the 95 % interval.
        high: Its other end.
        why: Why there is none.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str | None = None


@dataclass(frozen=True)
class Halved:
    """A figure of all clips and of both halves of each split; differences of such are such again.

    Args:
        whole: Of all clips.
        parts_P2: Of the halves, a line a split.
    """

    whole: float
    parts_P2: np.ndarray

    def __sub__(self, other: Halved) -> Halved:
        """The difference, of the same splits."""
        return Halved(self.whole - other.whole, self.parts_P2 - other.parts_P2)

    @property
    def bias(self) -> float:
        """What the number of clips adds, as far as it falls as 1/n: that of half of them is twice as large."""
        return float(self.parts_P2.mean()) - self.whole

    @property
    def quantile(self) -> float:
        """How many errors an interval reaches to either side."""
        return float(student.ppf((1 + LEVEL) / 2, len(self.parts_P2)))


def splits(sizes: Sequence[int], count: int, seed: int = 0) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Random splits in two halves.

    Args:
        sizes: Clips of each set that is split by itself; sets that share their ids are one.
        count: Splits.
        seed: Of the draws.

    Yields:
        For each set, the places of either half, in random order.
    """
    random = np.random.RandomState(seed)
    for _ in range(count):
        halves = [np.array_split(random.permutation(size), 2) for size in sizes]
        yield [(first, second) for first, second in halves]


def covariance(figures: Sequence[Halved], smooth: bool) -> np.ndarray:
    """Variances and covariances of figures over the same splits.

    Args:
        figures: K of them.
        smooth: Whether they are functions of means over clips and pairs of clips, as distances are. Otherwise (shares
            of nearest neighbours) the variance of a half, divided by two, stands for that of all clips.

    Returns:
        `[K, K]`.
    """
    across = np.stack([(figure.parts_P2[:, 0] - figure.parts_P2[:, 1]) / 2 for figure in figures])
    apart = across @ across.T / across.shape[1]
    if not smooth:
        return apart
    together = np.atleast_2d(np.cov(np.stack([figure.parts_P2.mean(axis=1) for figure in figures])))
    # Pairs of clips give at most half of `apart`; beyond that it is the noise of too few splits.
    floor = (1e-12 * np.trace(apart) + 1e-300) * np.eye(len(apart))
    most = float(eigh(together, apart + floor, eigvals_only=True)[-1])
    return apart - min(1.0, 0.5 / max(most, 1e-12)) * together


def interval(figure: Halved, smooth: bool, biased: bool) -> Interval:
    """The interval of a figure.

    Args:
        figure: Of all clips and of halves.
        smooth: See `covariance`.
        biased: Whether its bias falls as 1/n, and is taken out of the interval.

    Returns:
        It.
    """
    error, bias = float(covariance([figure], smooth)[0, 0]) ** 0.5, figure.bias if biased else 0.0
    centre, reach = figure.whole - bias, figure.quantile * error
    low, high = min(centre - reach, figure.whole), max(centre + reach, figure.whole)
    return Interval(figure.whole, error, low, high, bias)


def ratio(top: Halved, bottom: Halved, smooth: bool, biased: bool) -> Ratio:
    """A ratio of figures of the same splits.

    Args:
        top: Numerator.
        bottom: Denominator.
        smooth: See `covariance`.
        biased: As for `interval`; stretched to the ratio of the figures themselves, too.

    Returns:
        The ratio of the figures of all clips, and the interval of the true one.
    """
    figures = (top, bottom)
    true = [figure.whole - (figure.bias if biased else 0.0) for figure in figures]
    found = fieller(top.whole, bottom.whole, true, covariance(figures, smooth), top.quantile)
    return Ratio(1.0, 1.0, 1.0) if top is bottom and found.value is not None else found


def fieller(top: float, bottom: float, true: Sequence[float], covariance_22: np.ndarray, quantile: float) -> Ratio:
    """A ratio by Fieller's theorem (1954, Journal of the Royal Statistical Society B 16).

    The interval holds the values r for which `top - r bottom` may be zero. It is an interval only while that of the
    denominator lies above zero; where it does not, there is no ratio to speak of.

    Args:
        top: Numerator, as it is printed.
        bottom: Denominator.
        true: Both as they are estimated, their bias taken out.
        covariance_22: Variances and covariance of both.
        quantile: How many errors an interval reaches to either side.

    Returns:
        `top / bottom` and the interval of the true ratio, stretched to that where it lies outside.
    """
    (v_top, both), (_, v_bottom) = covariance_22.tolist()
    a, b = true
    low = min(bottom, b - quantile * v_bottom**0.5)
    if not low > 0:
        return Ratio(None, None, None, f"the denominator is not clearly above 0 (95 % interval from {low:.3g})")
    squared = quantile**2
    square, linear, constant = b * b - squared * v_bottom, a * b - squared * both, a * a - squared * v_top
    root = max(linear * linear - square * constant, 0.0) ** 0.5
    value = top / bottom
    return Ratio(value, min((linear - root) / square, value), max((linear + root) / square, value))


def mean_interval(values_N: np.ndarray) -> Interval:
    """The interval of a mean, of which the jackknife is known in closed form.

    Args:
        values_N: Values of N independent things, 2 at least.

    Returns:
        It, with no bias.
    """
    mean, error = float(values_N.mean()), float(values_N.std(ddof=1)) / len(values_N) ** 0.5
    reach = float(student.ppf((1 + LEVEL) / 2, len(values_N) - 1)) * error
    return Interval(mean, error, mean - reach, mean + reach)


def ratio_of_means(top_N: np.ndarray, bottom_N: np.ndarray) -> Ratio:
    """The ratio of two means over the same things.

    Args:
        top_N: Values of N independent things, 2 at least.
        bottom_N: Other values of the same.

    Returns:
        The ratio.
    """
    means = float(top_N.mean()), float(bottom_N.mean())
    return fieller(*means, means, np.cov(top_N, bottom_N) / len(top_N),
                   float(student.ppf((1 + LEVEL) / 2, len(top_N) - 1)))


def jackknife(
    statistic: Callable[[Sequence[str]], Mapping[str, float]],
    ids: Sequence[str],
    draws: int = 200,
    seed: int = 0,
    smooth: bool = True,
    biased: bool = False,
) -> dict[str, Interval]:
    """Intervals of whatever a function takes from clip ids.

    All figures are taken from the same halves: ratios and differences of models that answer the same captions get the
    interval of the pair, not of two independent sets. Nothing is drawn with replacement, which would repeat clips, and
    a distance between distributions takes that for less variety.

    Args:
        statistic: Clip ids to figures by name.
        ids: All clip ids.
        draws: Halves that are drawn, two a split.
        seed: Of the splits, which are made over sorted ids.
        smooth: See `covariance`.
        biased: See `interval`.

    Returns:
        Each figure of all clips with its error and interval.

    Raises:
        MusiccmError: Fewer than 8 ids, repeated ids, or fewer than 4 draws.
    """
    order = sorted(set(ids))
    if len(order) < FEWEST or len(order) != len(ids) or draws < 4:
        raise MusiccmError(f"jackknife: expected at least {FEWEST} different ids and 4 draws, found {len(ids)} ids, "
                           f"{len(order)} of them different, and {draws} draws")
    whole = statistic(order)
    drawn = [[statistic([order[i] for i in half]) for half in halves]
             for (halves,) in splits([len(order)], draws // 2, seed)]
    return {name: interval(Halved(value, np.array([[half[name] for half in pair] for pair in drawn])), smooth, biased)
            for name, value in whole.items()}
