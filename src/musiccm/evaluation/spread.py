"""The spread of models as rows of results: beside the baseline's, and beside that of real renderings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musiccm.evaluation.comparison import FLOOR, ratio_keys
from musiccm.metrics.spread import Spread


def compare_spreads(
    network: str, models: Mapping[str, Spread], real: Spread | None, baseline: str | None
) -> dict[str, dict[str, Any]]:
    """Keys of rows of results for the spread of many noises for one caption.

    Args:
        network: Whose features these are.
        models: Label to spread, over the same captions each.
        real: The spread of real renderings of these captions, K = 2 being enough; None where there are none.
        baseline: Label of the row that ratios are taken to; None for no ratio.

    Returns:
        Label, and `FLOOR` for the real ones, to `spread_<network>` with `_low` and `_high`; `_ratio` to the baseline,
        and `_real_ratio` to the real renderings, with `_low` and `_high` each; null with `_why` where the denominator
        is not clearly above 0.

    Raises:
        MusiccmError: Other captions of one than of another.
    """
    key, rows = f"spread_{network}", {}
    sets = dict(models) if real is None else {FLOOR: real, **models}
    for label, found in sets.items():
        value = found.interval()
        row: dict[str, Any] = {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        if baseline is not None:
            row |= ratio_keys(f"{key}_ratio", found.ratio(sets[baseline]))
        if real is not None and label != FLOOR:
            row |= ratio_keys(f"{key}_real_ratio", found.ratio(real))
        rows[label] = row
    return rows
