"""Distances against network calls, one picture a metric and decoder, with intervals and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from musiccm.evaluation.candidates import compared_model
from musiccm.evaluation.registry import Found, Scope, direction, find, metrics_of
from musiccm.evaluation.rows import baseline_of, by_decoder, caption_of, is_floor, label_of, model_of
from musiccm.files import write_atomically

#: What is drawn, in this order.
_SCOPES: tuple[Scope, ...] = ("comparison", "sets", "noises")
#: Lines of the teacher's configurations and of the others', one after another.
_STYLES = {True: ("-", "--", ":", "-."), False: ("-",)}
_LABEL_SIZE = 8
#: Half the width of a point, and how near two must be to share a label, in typographic points.
_MARK, _SAME = 3.5, 6
#: Directions in which a label is tried, in the order of preference: above right first.
_ANGLES = tuple(np.deg2rad([60, 120, 30, 150, 300, 240, 330, 210, 90, 270, 0, 180]))


class _Point(NamedTuple):
    """A point with its interval and its label."""

    x: float
    y: float
    low: float
    high: float
    text: str
    colour: str


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], evaluator: str = "tagger") -> list[Path]:
    """Plot the metrics that compare sets, each as `<key>_against_calls_<decoder>.png`.

    Args:
        folder: Where to.
        rows: Rows of the table.
        evaluator: The network whose they are.

    Returns:
        The files.
    """
    written = []
    for decoder, found in by_decoder(rows).items():
        for metric in (metric for scope in _SCOPES for metric in metrics_of(scope)):
            key = metric.columns[0].key.replace("<net>", evaluator)
            if metric.log_scale is not None and any(row.get(key) is not None for row in found if not is_floor(row)):
                written.append(folder / f"{key}_against_calls_{decoder}.png")
                plot_metric(written[-1], found, key, decoder)
    return written


def plot_metric(path: Path, rows: Sequence[dict[str, Any]], key: str, decoder: str | None = None) -> None:
    """Plot a metric against network calls, one line a model, with 95 % intervals as bars.

    Args:
        path: The PNG to write, whole or not at all.
        rows: Rows of the table.
        key: The metric's key in the rows.
        decoder: Whose rows are drawn; those of the decoder that has most if None.
    """
    found = by_decoder(rows)
    decoder = decoder or max(found, key=lambda name: len(found[name]))
    figure = metric_figure(found[decoder], key, decoder)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def metric_figure(rows: Sequence[dict[str, Any]], key: str, decoder: str):
    """The figure of `plot_metric`; the numbers at its points, steps, are annotations that cover nothing.

    Args:
        rows: Rows of one decoder.
        key: The metric's key in the rows.
        decoder: The decoder, for the title.

    Returns:
        A matplotlib figure with an Agg canvas, drawn once.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points: list[_Point] = []
    for row_of, style, found in _lines(rows, key):
        calls, values = [row["network_calls"] for row in found], [row[key] for row in found]
        spread = np.array([[max(0.0, row[key] - row.get(f"{key}_low", row[key])) for row in found],
                           [max(0.0, row.get(f"{key}_high", row[key]) - row[key]) for row in found]])
        drawn = axes.errorbar(calls, values, yerr=spread if spread.any() else None, capsize=2, elinewidth=1,
                              linestyle=style, marker=compared_model(model_of(row_of)).marker, markersize=5,
                              label=caption_of(row_of))
        points += [_Point(x, y, y - low, y + high, str(row["steps"]), drawn[0].get_color())
                   for x, y, low, high, row in zip(calls, values, *spread, found, strict=True)]
    _draw_floor(axes, rows, key)
    axes.set(xscale="log", ylabel=key, xlabel="network calls a clip (numbers at the points: steps)")
    _scale(axes, find(key), points)
    ticks = {point.x for point in points}
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)], rotation=45 if len(ticks) > 8 else 0)
    axes.minorticks_off()
    axes.grid(True, alpha=0.25)
    axes.margins(x=0.06, y=0.1)
    size = min((row["n"] for row in rows), default=0)
    has_bars = any(point.high > point.low for point in points)
    axes.set_title(f"{decoder} decoder, n = {size:,} clips, {direction(key)} is better"
                   + ("; bars: 95 % intervals" if has_bars else ""), fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8)  # beside the axes, where it hides no point
    figure.canvas.draw()
    figure.set_layout_engine("none")  # what the labels were placed for
    _label(axes, points)
    return figure


def _lines(
    rows: Sequence[dict[str, Any]], key: str
) -> Iterator[tuple[Mapping[str, Any], str, list[dict[str, Any]]]]:
    """A row of each model, the style of its line, and its points."""
    drawn = {True: 0, False: 0}
    for name in dict.fromkeys(model_of(row) for row in rows if not is_floor(row)):
        found = [row for row in rows if model_of(row) == name and row.get("network_calls")
                 and row.get(key) is not None]
        if found:
            teacher = compared_model(name).teacher or name.startswith("teacher")
            style = _STYLES[teacher][drawn[teacher] % len(_STYLES[teacher])]
            drawn[teacher] += 1
            yield found[0], style, sorted(found, key=lambda row: row["network_calls"])


def _draw_floor(axes: Any, rows: Sequence[dict[str, Any]], key: str) -> None:
    """The floor as a line with its interval, and the baseline as a thin one."""
    for row in rows:
        if is_floor(row) and row.get(key) is not None:
            axes.axhline(row[key], color="black", linewidth=1, linestyle=(0, (6, 2)), label="floor")
            if row.get(f"{key}_low") is not None:
                axes.axhspan(row[f"{key}_low"], row[f"{key}_high"], color="black", alpha=0.08)
    baseline = baseline_of(rows)
    if baseline is not None and baseline.get(key) is not None:
        axes.axhline(baseline[key], color="grey", linewidth=0.7, zorder=0, label=label_of(baseline))


def _scale(axes: Any, found: Found | None, points: Sequence[_Point]) -> None:
    """A logarithmic axis where the metric has one; linear around 0 where a floor or an interval reaches it."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    positive = [point.y for point in points if point.y > 0]
    if found is None or not found.metric.log_scale or not positive:
        return
    lowest = min(point.low for point in points)
    if lowest > 0 and found.metric.scope != "comparison":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    else:
        start = 10 ** np.floor(np.log10(min(positive)))
        axes.set_yscale("symlog", linthresh=start, linscale=0.5)
        highest = max(point.high for point in points)
        steps = [start * 10**i * j for i in range(int(np.ceil(np.log10(highest / start))) + 1) for j in (1, 2, 5)]
        axes.set_yticks([tick for tick in [*(-step for step in reversed(steps)), 0.0, *steps]
                         if min(lowest, 0.0) * 1.5 <= tick <= highest * 1.5])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: Any, points: Sequence[_Point]) -> None:
    """Write the steps beside the points, each at the nearest place that covers no point, bar or other label.

    Crowded ones move away from their point, to which a thin line then leads; points on top of each other share one.
    """
    from matplotlib.transforms import Bbox

    to_pixels, scale = axes.transData.transform, axes.figure.dpi / 72
    taken = []
    for point in points:
        (x, y), low, high = to_pixels((point.x, point.y)), *(to_pixels((point.x, y))[1] for y in point[2:4])
        reach = _MARK * scale
        taken += [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach),
                  Bbox.from_extents(x - reach, low - scale, x + reach, high + scale)]
    inside, renderer = axes.get_window_extent(), axes.figure.canvas.get_renderer()
    for shared in _together(points, to_pixels, _SAME * scale):
        point = shared[0]
        px, py = to_pixels((point.x, point.y))
        note = axes.annotate(point.text, (point.x, point.y), xytext=(0, 0), textcoords="offset points",
                             fontsize=_LABEL_SIZE, ha="center", va="center",
                             color=point.colour if len(shared) == 1 else "black")
        size = note.get_window_extent(renderer)
        for distance, angle in ((r, a) for r in range(8, 140, 4) for a in _ANGLES):
            dx, dy = distance * np.cos(angle), distance * np.sin(angle)
            x, y = px + dx * scale, py + dy * scale
            box = Bbox.from_bounds(x - size.width / 2 - 1, y - size.height / 2 - 1, size.width + 2, size.height + 2)
            if inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) and not any(
                    box.overlaps(other) for other in taken):
                break
        else:
            note.remove()  # so full that there is no room: the table has the number
            continue
        note.set_position((dx, dy))
        taken.append(box)
        if distance > 14:
            end = axes.transData.inverted().transform((x, y))
            axes.plot([point.x, end[0]], [point.y, end[1]], color="grey", linewidth=0.4, zorder=0, scalex=False,
                      scaley=False)


def _together(points: Sequence[_Point], to_pixels: Any, near: float) -> list[list[_Point]]:
    """Points of one label that lie on top of each other, from left to right."""
    found: list[list[_Point]] = []
    for point in sorted(points):
        place = to_pixels((point.x, point.y))
        for group in found:
            if group[0].text == point.text and np.abs(to_pixels(group[0][:2]) - place).max() < near:
                group.append(point)
                break
        else:
            found.append([point])
    return found
