"""The table of an evaluation: as JSON for programs, as text for the terminal, as a plot for the eye."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.evaluation.candidates import compared_model, place_of
from musiccm.evaluation.registry import direction, find, head_of, metrics_of, shown_keys
from musiccm.files import write_atomically, write_json
from musiccm.texts import number_text

SCHEMA = 1


def sort_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by model, in the order of `MODELS`, then from few steps to many.

    Args:
        rows: Rows of the table.

    Returns:
        A sorted copy.
    """
    return sorted(rows, key=lambda row: (place_of(row["model"]), row["model"], row["steps"]))


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


def at_chance(row: dict[str, Any], references: dict[str, Any]) -> list[str]:
    """The attributes that the tagger cannot tell: on real clips it is no better than always naming the commonest tag.

    Args:
        row: A row of the table, with `acc_<group>_chance`.
        references: Metrics of the real clips, with `acc_<group>_real`.

    Returns:
        Those groups whose accuracy on the real clips is within two standard errors of chance, or below.
    """
    found = []
    for key, real in references.items():
        if key.startswith("acc_") and key.endswith("_real"):
            group = key.removeprefix("acc_").removesuffix("_real")
            chance = row.get(f"acc_{group}_chance")
            if chance is not None and real <= chance + 2 * math.sqrt(chance * (1 - chance) / row["n"]):
                found.append(group)
    return found


def format_table(
    rows: Sequence[dict[str, Any]], references: dict[str, Any], evaluator: str = "tagger", notes: Sequence[str] = (),
) -> str:
    """The table as text, with the distance relative to the teacher at its most steps, too.

    Every number of the rows has a column, with an arrow to where it is better. Attributes stand above what naming the
    commonest tag would come to; those that the tagger cannot tell are left out, and said so.

    Args:
        rows: Rows of the table.
        references: Metrics of the real clips.
        evaluator: Name of the classifier behind FD, IS and KL.
        notes: Sentences below the table.

    Returns:
        Lines, ended by a newline.
    """
    rows = sort_rows(rows)
    fd = f"fd_{evaluator}"
    teachers = [row for row in rows if row["model"] == "teacher"]
    anchor = max(teachers, key=lambda row: row["steps"])[fd] if teachers else None
    decoder = "original"
    # In every table, whether there is such a number or not.
    first = [fd, f"is_{evaluator}_mean", f"kl_{evaluator}", "ta_similarity", "sim_aa_90", "sim_aa_95"]
    shown = shown_keys(rows)
    acc = [key for key in shown if (found := find(key)) and found.metric.scope == "attributes"]
    hidden = at_chance(rows[0], references) if rows else []
    groups = [key for key in acc if key[4:] not in hidden]
    others = [key for key in shown if key not in {*first, *acc, "network_calls", "latency_s"}]
    columns: list[tuple[str, Any]] = [
        ("model", lambda r: r["model"]),
        ("steps", lambda r: str(r["steps"])),
        _column("network_calls", evaluator),
        _column(fd, evaluator),
        # A ratio across decoders would be theirs, not the sampler's.
        ("x teacher", lambda r: _number(r[fd] / anchor if anchor and r[fd] is not None
                                        and r.get("decoder", "original") == decoder else None, 2)),
        *(_column(key, evaluator) for key in [*first[1:], *others, *groups]),
        (head_of("latency_s"),
         lambda r: _number(r.get("latency_s"), 3) + ("*" if r.get("from_cache") else "")),
        ("n", lambda r: str(r["n"])),
    ]
    cells = [[head for head, _ in columns], *[[str(cell(row)) for _, cell in columns] for row in rows]]
    if any(row.get(f"{key}_chance") is not None for row in rows for key in groups):
        chance = {_column(key, evaluator)[0]: _number(rows[0].get(f"{key}_chance"), 2) for key in groups}
        cells.append(["chance", *(chance.get(head, "") for head, _ in columns[1:])])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    lines.append("real test clips: " + ", ".join(
        f"{key} {number_text(value, '.3f')}" for key, value in references.items()))
    if hidden:
        said = ", ".join(f"{group} (real clips {references[f'acc_{group}_real']:.3f}, chance "
                         f"{rows[0][f'acc_{group}_chance']:.3f})" for group in hidden)
        lines.append(f"left out, for the tagger cannot tell them: {said}")
    lines += notes
    if any(row.get("from_cache") for row in rows):
        lines.append("* figures from the cache of an earlier evaluation of the same teacher; the time was measured "
                     "now, on one batch")
    return "\n".join(lines) + "\n"


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], evaluator: str = "tagger") -> list[Path]:
    """Plot the metrics that compare the two sets, each as `<metric>_against_calls.png`.

    Args:
        folder: Where to.
        rows: Rows of the table.
        evaluator: The network whose they are.

    Returns:
        The files.
    """
    written = []
    for metric in metrics_of("sets"):
        key = metric.columns[0].key.replace("<net>", evaluator)
        if metric.log_scale is not None and any(row.get(key) is not None for row in rows):
            written.append(folder / f"{metric.name}_against_calls.png")
            plot_metric(written[-1], rows, key)
    return written


def plot_metric(path: Path, rows: Sequence[dict[str, Any]], key: str) -> None:
    """Plot a metric against network calls, these on a log axis, one line a model.

    Args:
        path: The PNG to write, whole or not at all.
        rows: Rows of the table.
        key: The metric's key in the rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    found = find(key)
    log_scale = found is not None and found.metric.log_scale
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ticks: set[float] = set()
    for name in dict.fromkeys(row["model"] for row in sort_rows(rows)):
        points = [(r["network_calls"], r[key], r["steps"]) for r in sort_rows(rows)
                  if r["model"] == name and r.get("network_calls") and r.get(key) is not None]
        if not points:
            continue
        calls, distances, steps = zip(*points, strict=True)
        model = compared_model(name)
        axes.plot(calls, distances, marker=model.marker, label=model.caption)
        for x, y, count in points:
            axes.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        ticks.update(calls)
    axes.set(xscale="log", yscale="log" if log_scale else "linear", ylabel=key,
             xlabel="network calls a clip (numbers at the points: steps)")
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    if log_scale:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(True, alpha=0.25)
    axes.set_title(f"n = {min((row['n'] for row in rows), default=0)} clips, {direction(key)} is better", fontsize=10)
    if ticks:
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _column(key: str, evaluator: str) -> tuple[str, Callable[[Mapping[str, Any]], str]]:
    """Head and cells of a number."""
    found = find(key)
    digits = 3 if found is None else found.column.digits
    deviation = f"{key.removesuffix('_mean')}_std" if key.endswith("_mean") else None

    def cell(row: Mapping[str, Any]) -> str:
        text = _number(row.get(key), digits)
        return text if deviation is None else f"{text} ± {_number(row.get(deviation), digits)}"

    return head_of(key, evaluator), cell


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _finite(value: Any) -> Any:
    # JSON has no NaN; a metric that is none must not look like one.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
