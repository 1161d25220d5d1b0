"""The report of a listening test as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.files import write_atomically


def plot_report(path: Path, report: Mapping[str, Any]) -> bool:
    """Draw wins, ties and losses of each pair, or the mean ratings of each system, with 95 % intervals.

    Args:
        path: The PNG to write, whole or not at all.
        report: Of `listening_report`.

    Returns:
        Whether there was anything to draw.
    """
    rows = [row for row in report["pairs" if report["kind"] == "preference" else "means"]
            if row.get("share") is not None or row.get("mean") is not None]
    if not rows:
        return False
    figure = _preferences(rows) if report["kind"] == "preference" else _ratings(rows, report["scale"])
    figure.suptitle(f"{report['listeners']} listeners, {report['items']} clips a system; bars: 95 % intervals",
                    fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    return True


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False, sharey=True)[0]


def _preferences(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, (axes,) = _figure(8.5, 1.4 + 0.55 * len(rows), 1)
    for place, row in enumerate(reversed(rows)):
        total = row["wins"] + row["ties"] + row["losses"]
        left = 0.0
        for name, colour in (("wins", "C0"), ("ties", "0.8"), ("losses", "C1")):
            axes.barh(place, row[name] / total, left=left, color=colour, height=0.55)
            if row[name]:
                axes.text(left + row[name] / total / 2, place, str(row[name]), ha="center", va="center", fontsize=8)
            left += row[name] / total
        # the share among decided pairs, on the same axis, below its bar
        axes.errorbar(row["share"], place - 0.38, xerr=[[row["share"] - row["wilson_low"]],
                                                       [row["wilson_high"] - row["share"]]],
                      color="black", marker="o", markersize=3, capsize=2, linewidth=1)
    axes.axvline(0.5, color="0.3", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['first']} before {row['second']}\n({row['question']})"
                                       for row in reversed(rows)], fontsize=8)
    axes.set(xlim=(0, 1), xlabel="share of answers: wins, ties, losses; black: share of wins among decided pairs")
    axes.grid(True, axis="x", alpha=0.25)
    return figure


def _ratings(rows: Sequence[Mapping[str, Any]], scale: Sequence[int]) -> Any:
    questions = list(dict.fromkeys(row["question"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, grid = _figure(1.5 + 3.6 * len(questions), 1.4 + 0.4 * len(systems), len(questions))
    for axes, question in zip(grid, questions, strict=True):
        for row in rows:
            if row["question"] != question:
                continue
            bars = None if row["low"] is None else [[max(0.0, row["mean"] - row["low"])],
                                                    [max(0.0, row["high"] - row["mean"])]]
            place = systems.index(row["system"])
            axes.errorbar(row["mean"], len(systems) - 1 - place, xerr=bars, marker="o", capsize=3,
                          color=f"C{place % 10}")
        axes.set(xlim=scale, xlabel=f"mean of {question}", ylim=(-0.6, len(systems) - 0.4))
        axes.set_yticks(range(len(systems)), systems[::-1])
        axes.grid(True, axis="x", alpha=0.25)
    return figure
