"""The table of an evaluation: as JSON for programs, and by `text_table.py` and `result_plots.py` for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.evaluation.result_plots import plot_metric, write_plots
from musiccm.evaluation.rows import at_chance, sort_rows
from musiccm.evaluation.text_table import format_table
from musiccm.files import write_json

__all__ = ["at_chance", "format_table", "plot_metric", "sort_rows", "timed", "without_times", "write_plots",
           "write_results"]

SCHEMA = 1


def write_results(
    path: Path, experiment: str, rows: Sequence[dict[str, Any]], references: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    """Write `results.json`, whole or not at all.

    Args:
        path: The file.
        experiment: Name of the experiment.
        rows: One a model and step count.
        references: Metrics of the real clips.
        **extra: Further keys of the file, such as the machine and the checkpoint.

    Returns:
        What was written.
    """
    rows = sort_rows(rows)
    result = {
        "schema": SCHEMA,
        "experiment": experiment,
        "n": min((row["n"] for row in rows), default=0),
        "rows": rows,
        "references": references,
        **extra,
    }
    write_json(path, _finite(result))
    return result


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what it took to make it.

    Args:
        row: A row of the table.

    Returns:
        It without the keys that begin with `latency_`.
    """
    return {key: value for key, value in row.items() if not key.startswith("latency_")}


def timed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the times that its own run measured, and no others.

    Older versions took a teacher's row from a cache with the time of an earlier run; such a row does not say on how
    many batches its time rests.

    Args:
        row: A row of a results.json.

    Returns:
        The row, without its times where they are another run's.
    """
    return without_times(row) if row.get("from_cache") and "latency_batches" not in row else dict(row)


def _finite(value: Any) -> Any:
    # JSON has no NaN; a metric that is none must not look like one.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
