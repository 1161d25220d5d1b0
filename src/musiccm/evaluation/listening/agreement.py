"""How far listeners agree: Krippendorff's alpha, which takes any number of them and answers that are missing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np

#: Fewer units that two listeners answered say nothing of agreement.
LEAST_UNITS = 5


def krippendorff_alpha(
    units: Iterable[Sequence[Hashable]], distance: Literal["nominal", "interval"]
) -> float | None:
    """Agreement beyond chance (K. Krippendorff, Content Analysis, 2004, chapter 11): 1 is perfect, 0 is chance.

    Args:
        units: Of each clip or pair, the values that listeners gave it. Units with fewer than two count nothing.
        distance: `nominal` (equal or not) or `interval` (the square of the difference, for numbers).

    Returns:
        alpha; None where fewer than `LEAST_UNITS` units have two answers, or all answers are one.
    """
    paired = [list(unit) for unit in units if len(unit) > 1]
    if len(paired) < LEAST_UNITS:
        return None
    differences = _nominal if distance == "nominal" else _interval
    total = sum(map(len, paired))
    observed = sum(differences(unit) / (len(unit) - 1) for unit in paired) / total
    expected = differences([value for unit in paired for value in unit]) / (total * (total - 1))
    return None if expected == 0 else 1.0 - observed / expected


def _nominal(values: Sequence[Hashable]) -> float:
    """Ordered pairs of values that differ."""
    counts = np.array([values.count(value) for value in set(values)], dtype=float)
    return float(len(values) ** 2 - np.sum(counts**2))


def _interval(values: Sequence[Hashable]) -> float:
    """The squares of the differences of all ordered pairs."""
    numbers = np.asarray(values, dtype=float)
    return float(2 * len(numbers) * np.sum((numbers - numbers.mean()) ** 2))
