"""Intervals of means over answers that share listeners and clips: both are resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, t

#: Of a percentile interval; with fewer listeners or clips it is too narrow to be shown.
LEAST_LISTENERS, LEAST_CLIPS = 5, 5
_TOGETHER = 100


class Resampling:
    """The bootstrap of crossed factors (A. B. Owen, The pigeonhole bootstrap, 2007).

    Each draw takes listeners with replacement and, apart from them, clips with replacement; an answer counts as often
    as its listener times as its clip. The percentiles are those of a small sample (T. C. Hesterberg, What Teachers
    Should Know about the Bootstrap, 2015, section 4): of few listeners or clips, plain ones would lie too near.

    Args:
        listeners: Who gave each answer.
        clips: Which clip each answer is of, such as the caption's id.
        seed: Of the draws.
        draws: How many.
    """

    def __init__(self, listeners: Sequence[str], clips: Sequence[str], seed: int = 0, draws: int = 5000) -> None:
        self._who, self._what = (np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].reshape(-1)
                                 for names in (listeners, clips))
        generator = np.random.default_rng(seed)
        self._counts = [_counts(factor, draws, generator) for factor in (self._who, self._what)]
        self.draws = draws

    def means(self, values_N: np.ndarray, chosen_N: np.ndarray) -> np.ndarray:
        """The mean of some of the answers in each draw.

        Args:
            values_N: A value an answer.
            chosen_N: Which answers count, as booleans.

        Returns:
            A mean a draw; NaN where a draw took none of them.
        """
        who, what, values = self._who[chosen_N], self._what[chosen_N], np.asarray(values_N, dtype=float)[chosen_N]
        found = np.full(self.draws, np.nan)
        for first in range(0, self.draws, _TOGETHER):
            part = slice(first, first + _TOGETHER)
            weights = self._counts[0][part][:, who] * self._counts[1][part][:, what]
            total = weights.sum(axis=1)
            np.divide(weights @ values, total, out=found[part], where=total > 0)
        return found

    def interval(self, values_N: np.ndarray, chosen_N: np.ndarray) -> tuple[float | None, float | None]:
        """The 95 % interval of a mean; arguments as `means`, None where the answers are too few, or all one."""
        if len(np.unique(np.asarray(values_N)[chosen_N])) == 1:
            return None, None  # where all answers are one, so are all draws
        return self.ends(self.means(values_N, chosen_N), chosen_N)

    def ends(self, drawn: np.ndarray, *chosen_N: np.ndarray) -> tuple[float | None, float | None]:
        """The 95 % interval that draws give.

        Args:
            drawn: A value a draw; those of NaN are left out.
            chosen_N: Which answers went into it; of a difference, those of either side.

        Returns:
            Its ends; None where the answers of a side are of fewer than `LEAST_LISTENERS` or `LEAST_CLIPS`.
        """
        counts = [(len(np.unique(self._who[chosen])), len(np.unique(self._what[chosen]))) for chosen in chosen_N]
        if any(listeners < LEAST_LISTENERS or clips < LEAST_CLIPS for listeners, clips in counts):
            return None, None
        n = min(map(min, counts))
        tail = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
        low, high = np.nanpercentile(drawn, [100 * tail, 100 * (1 - tail)])
        return float(low), float(high)


def _counts(factor: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    kinds = int(factor.max(initial=-1)) + 1
    if not kinds:
        return np.zeros((draws, 0), dtype=int)
    return generator.multinomial(kinds, np.full(kinds, 1 / kinds), size=draws)
