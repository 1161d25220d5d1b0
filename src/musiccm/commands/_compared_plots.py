"""Objectives beside each other: distance against cost, and coverage against distance; one picture a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from musiccm.files import write_atomically

#: One an experiment; colours are those of matplotlib's cycle.
MARKERS = "osD^vP*Xhd<>8p"
#: A log axis where the largest value is this many times the smallest.
LOG_RANGE = 20.0


class Measure(NamedTuple):
    """A number over the runs of an experiment.

    Args:
        mean: Their mean.
        deviation: Their sample standard deviation; None of one run.
        low: Lower end of the 95 % interval, of one run that states it.
        high: Upper end.
        runs: How many runs it is of: not all of an experiment where some could not give it.
    """

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 1

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of one run; of several, a standard deviation to either side."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return self.mean - (self.deviation or 0.0), self.mean + (self.deviation or 0.0)


def plot_objectives(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    embedder: str,
    costs: Mapping[str, float],
    unit: str | None,
    title: str,
    steps: Sequence[int] = (1, 4),
) -> None:
    """Draw the students of several experiments through one decoder.

    Args:
        path: The PNG to write, whole or not at all.
        rows: Of `compare`, with `experiment`, `model`, `steps` and a `Measure` of each key.
        embedder: Whose distance and coverage.
        costs: Minutes of each experiment.
        unit: What they are; None draws no panel of costs.
        title: Of the whole.
        steps: Sampling steps to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    excess, coverage = f"excess_fd_{embedder}", f"coverage_{embedder}"
    students = [row for row in rows if row["model"] == "student" and isinstance(row.get(excess), Measure)]
    shown = [count for count in steps if any(row["steps"] == count for row in students)]
    panels = [(count,) for count in shown if unit is not None]
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    names = list(dict.fromkeys(row["experiment"] for row in students))
    looks = {name: {"marker": MARKERS[place % len(MARKERS)], "color": f"C{place % 10}"}
             for place, name in enumerate(names)}
    teacher = _baseline(rows, excess)
    for axes, (count,) in zip(grid, panels, strict=False):
        points = [(row["experiment"], Measure(costs[row["experiment"]]), row[excess]) for row in students
                  if row["steps"] == count and row["experiment"] in costs]
        _scatter(axes, points, looks, filled=True)
        if teacher is not None:
            axes.axhline(teacher[1].mean, color="0.4", linestyle="--", linewidth=1)
            axes.axhspan(*teacher[1].ends, color="0.4", alpha=0.12, linewidth=0)
        axes.set(title=f"{count} step{'s' if count > 1 else ''}", xlabel=unit, ylabel=f"excess of FD ({embedder})")
        minutes = [point[1].mean for point in points] or [1.0]
        axes.set_xlim(0.9 * min(minutes), 1.1 * max(minutes))  # equal costs stand side by side, and not in one line
        _scale(axes, [point[2] for point in points])
    last = grid[-1]
    for count in shown:
        points = [(row["experiment"], row[excess], row[coverage]) for row in students
                  if row["steps"] == count and isinstance(row.get(coverage), Measure)]
        _scatter(last, points, looks, filled=count == max(shown))
    last.set(title=", ".join(f"{'filled' if count == max(shown) else 'hollow'}: {count}" for count in shown),
             xlabel=f"excess of FD ({embedder})", ylabel=f"coverage ({embedder})")
    for axes in grid:
        axes.grid(True, alpha=0.25)
    handles = [last.plot([], [], linestyle="none", label=name, **look)[0] for name, look in looks.items()]
    if teacher is not None and panels:
        handles.append(last.plot([], [], color="0.4", linestyle="--", label=f"teacher@{teacher[0]}")[0])
    if handles:  # outside of the axes, where no name covers a point or another name
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    figure.suptitle(title, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _scatter(axes: Any, points: Sequence[tuple[str, Measure, Measure]], looks: Mapping[str, Any], filled: bool) -> None:
    for name, x, y in points:
        bars = {f"{axis}err": [[max(0.0, value.mean - value.ends[0])], [max(0.0, value.ends[1] - value.mean)]]
                for axis, value in (("x", x), ("y", y))}
        axes.errorbar(x.mean, y.mean, **bars, **looks[name], linestyle="none", capsize=2, markersize=7, linewidth=1,
                      markerfacecolor=None if filled else "white")


def _baseline(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[int, Measure] | None:
    """The teacher at its most steps, and its excess: of the first experiment that has it."""
    found = [row for row in rows if row["model"] == "teacher" and isinstance(row.get(key), Measure)]
    most = max((row["steps"] for row in found), default=0)
    return next(((most, row[key]) for row in found if row["steps"] == most), None)


def _scale(axes: Any, values: Sequence[Measure]) -> None:
    least = min((value.ends[0] for value in values), default=0.0)
    if least > 0 and max(value.mean for value in values) > LOG_RANGE * min(value.mean for value in values):
        axes.set_yscale("log")
