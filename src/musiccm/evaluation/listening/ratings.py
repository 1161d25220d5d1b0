"""What a rating test says: means of systems and their differences, listeners and clips resampled."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from musiccm.evaluation.listening.agreement import krippendorff_alpha
from musiccm.evaluation.listening.answers import Listener
from musiccm.evaluation.listening.proportions import LEAST_DECIDED, LEVEL, POWER
from musiccm.evaluation.listening.resampling import Resampling

#: Of the degraded copies, in place of a system's name.
ANCHOR = "anchor"


class Rating(NamedTuple):
    """One number: who gave it, to which item of which system."""

    listener: str
    item: str
    system: str
    value: int


def ratings(listeners: Sequence[Listener], key: Mapping[str, Any], question: str, role: str = "clip") -> list[Rating]:
    """The answers to a question about the pages of a role; degraded copies are the system `ANCHOR`'s."""
    found = []
    for listener in listeners:
        for answer in listener.answers:
            trial = key["trials"][answer.trial]
            if trial["role"] == role and question in answer.answers:
                system = ANCHOR if role == "anchor" else key["files"][answer.files[0]]["system"]
                found.append(Rating(listener.name, trial["item"], system, int(answer.answers[question])))
    return found


def rating_rows(
    listeners: Sequence[Listener], key: Mapping[str, Any], seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Means and differences, question by question.

    Args:
        listeners: Those whose answers count.
        key: Of the test.
        seed: Of the resampling.

    Returns:
        `means`: rows of `question`, `system`, `n`, `listeners`, `clips`, `mean`, `deviation`, `low`, `high` (95 %), the
        anchors last; `differences`: `question`, `first`, `second`, `difference` of the means, `low`, `high`, `n` pairs
        of one listener and clip, and `pairs_needed` of them for 80 % power at a difference of this size. Numbers are
        None where there are too few.
    """
    means, differences = [], []
    for question in key["questions"]:
        found = ratings(listeners, key, question)
        found += ratings(listeners, key, question, "anchor")
        if not found:
            continue
        drawn = Resampling([one.listener for one in found], [one.item for one in found], seed)
        values, systems = np.array([one.value for one in found], dtype=float), np.array([one.system for one in found])
        for system in [*key["systems"], ANCHOR]:
            own = systems == system
            if own.any():
                means.append({"question": question, "system": system} | _mean(found, values, own, drawn))
        for first, second in combinations(key["systems"], 2):
            row = _difference(found, values, systems == first, systems == second, drawn)
            differences.append({"question": question, "first": first, "second": second} | row)
    return {"means": means, "differences": differences}


def _mean(found: Sequence[Rating], values: np.ndarray, own: np.ndarray, drawn: Resampling) -> dict[str, Any]:
    chosen = [one for one, taken in zip(found, own, strict=True) if taken]
    row: dict[str, Any] = {"n": len(chosen), "listeners": len({one.listener for one in chosen}),
                           "clips": len({one.item for one in chosen}), "mean": None, "deviation": None}
    if len(chosen) >= LEAST_DECIDED:
        row |= {"mean": float(values[own].mean()), "deviation": float(values[own].std(ddof=1))}
    low, high = drawn.interval(values, own) if row["mean"] is not None else (None, None)
    return row | {"low": low, "high": high}


def _difference(
    found: Sequence[Rating], values: np.ndarray, first: np.ndarray, second: np.ndarray, drawn: Resampling
) -> dict[str, Any]:
    cells: dict[tuple[str, str], list[float | None]] = defaultdict(lambda: [None, None])
    for one, value, is_first, is_second in zip(found, values, first, second, strict=True):
        if is_first or is_second:
            cells[one.listener, one.item][0 if is_first else 1] = float(value)
    paired = np.array([a - b for a, b in cells.values() if a is not None and b is not None])
    row: dict[str, Any] = {"n": len(paired), "difference": None, "low": None, "high": None, "pairs_needed": None}
    if len(paired) < LEAST_DECIDED:
        return row
    row["difference"] = float(values[first].mean() - values[second].mean())
    row["pairs_needed"] = paired_ratings_needed(float(paired.mean()), float(paired.std(ddof=1)))
    row["low"], row["high"] = drawn.ends(drawn.means(values, first) - drawn.means(values, second), first, second)
    return row


def paired_ratings_needed(
    difference: float, deviation: float, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Pairs of ratings that tell a mean difference from none, by the normal approximation of the two-sided paired test.

    Args:
        difference: The true mean of the differences.
        deviation: Their standard deviation.
        power: Probability of finding it.
        level: Of the test.

    Returns:
        The number; None where there is no difference.
    """
    if difference == 0:
        return None
    return max(2, math.ceil(((norm.ppf(1 - level / 2) + norm.ppf(power)) * deviation / difference) ** 2))


def rating_checks(listeners: Sequence[Listener], key: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement by question, and how far a rating lies from that of the same clip once more (the median distance)."""
    found: dict[str, Any] = {"alpha": {}, "repeated": {}}
    for question in key["questions"]:
        if question == "noise":
            continue
        own = ratings(listeners, key, question)
        units: dict[tuple[str, str], list[int]] = defaultdict(list)
        for one in own:
            units[one.item, one.system].append(one.value)
        found["alpha"][question] = krippendorff_alpha(units.values(), "interval")
        before = {one[:3]: one.value for one in own}
        apart = [abs(one.value - before[one[:3]]) for one in ratings(listeners, key, question, "repeat")
                 if one[:3] in before]
        found["repeated"][question] = {
            "n": len(apart), "median_distance": float(np.median(apart)) if len(apart) >= LEAST_DECIDED else None}
    return found
