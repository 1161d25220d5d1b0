"""Intervals of figures that are taken from the same clips: the delete-half jackknife over clip ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musiccm.errors import MusiccmError

# 95 % of a normal distribution.
_Z = 1.959964


class Interval(NamedTuple):
    """A figure with its uncertainty.

    Args:
        value: Of all clips.
        error: Its standard error.
        low: End of the 95 % interval.
        high: Its other end.
    """

    value: float
    error: float
    low: float
    high: float


def jackknife(
    statistic: Callable[[Sequence[str]], Mapping[str, float]], ids: Sequence[str], draws: int = 200, seed: int = 0
) -> dict[str, Interval]:
    """Standard errors by leaving out half of the clips at a time (Shao and Wu 1989, Annals of Statistics 17).

    Half of the ids is drawn without replacement, again and again, and all figures are taken from the same half: ratios
    and differences of models that answer the same captions get the interval of the pair, not of two independent sets.
    Drawing with replacement would repeat clips, which a distance between distributions takes for less variety.

    Args:
        statistic: Clip ids to figures by name.
        ids: All clip ids.
        draws: Halves that are drawn.
        seed: Of the draws, which are made over sorted ids.

    Returns:
        Each figure of all clips with its error, which is that of the halves about their mean: with as many clips left
        out as kept, the jackknife's factor is 1.

    Raises:
        MusiccmError: Fewer than 8 ids, repeated ids, or fewer than 2 draws.
    """
    order = sorted(set(ids))
    if len(order) < 8 or len(order) != len(ids) or draws < 2:
        raise MusiccmError(f"jackknife: expected at least 8 different ids and 2 draws, found {len(ids)} ids, "
                           f"{len(order)} of them different, and {draws} draws")
    random = np.random.RandomState(seed)
    whole = statistic(order)
    half = len(order) // 2
    drawn = [statistic([order[i] for i in random.permutation(len(order))[:half]]) for _ in range(draws)]
    factor = (half / (len(order) - half)) ** 0.5
    found = {}
    for name, value in whole.items():
        error = factor * float(np.std([figures[name] for figures in drawn], ddof=1))
        found[name] = Interval(value, error, value - _Z * error, value + _Z * error)
    return found
