"""The table of an evaluation: as JSON for programs, as text for the terminal, as a plot for the eye."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.evaluation.candidates import MODELS
from musiccm.files import write_atomically, write_json

SCHEMA = 1
NAMES = {"teacher": "teacher (DDIM, guided)", "student": "student, this run",
         "student_fast": "student, fast decoder", "student_shipped": "student, shipped"}


def sort_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by model, in the order of `MODELS`, then from few steps to many.

    Args:
        rows: Rows of the table.

    Returns:
        A sorted copy.
    """
    return sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["steps"]))


def write_results(
    path: Path, experiment: str, rows: Sequence[dict[str, Any]], references: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    """Write `results.json`, whole or not at all.

    Args:
        path: The file.
        experiment: Name of the experiment.
        rows: One a model and step count.
        references: Figures of the real clips.
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
        references: Figures of the real clips, with `acc_<group>_real`.

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
    """The table as text, with figures relative to the teacher at its most steps.

    Attributes stand above what naming the commonest tag would come to; those that the tagger cannot tell are left out,
    and said so.

    Args:
        rows: Rows of the table.
        references: Figures of the real clips.
        evaluator: Name of the classifier behind FD, IS and KL.
        notes: Sentences below the table.

    Returns:
        Lines, ended by a newline.
    """
    rows = sort_rows(rows)
    fd = f"fd_{evaluator}"
    teachers = [row for row in rows if row["model"] == "teacher"]
    anchor = max(teachers, key=lambda row: row["steps"])[fd] if teachers else None
    columns: list[tuple[str, Any]] = [
        ("model", lambda r: r["model"]),
        ("steps", lambda r: str(r["steps"])),
        ("calls", lambda r: _number(r.get("network_calls"), 0)),
        (fd, lambda r: _number(r[fd], 2)),
        # The teacher's rows are by the original decoder: a ratio across decoders would be theirs, not the sampler's.
        ("x teacher", lambda r: _number(
            r[fd] / anchor if anchor and r[fd] is not None and r["model"] != "student_fast" else None, 2)),
        # A network that does not classify has neither.
        ("IS", lambda r: f"{_number(r.get(f'is_{evaluator}_mean'), 2)} ± {_number(r.get(f'is_{evaluator}_std'), 2)}"),
        ("KL", lambda r: _number(r.get(f"kl_{evaluator}"), 3)),
        ("TA", lambda r: _number(r["ta_similarity"], 3)),
        ("SIM@90", lambda r: _number(r["sim_aa_90"], 3)),
        ("SIM@95", lambda r: _number(r["sim_aa_95"], 3)),
        ("s/clip", lambda r: _number(r.get("latency_s"), 3) + ("*" if r.get("from_cache") else "")),
        ("n", lambda r: str(r["n"])),
    ]
    others = [key for key in dict.fromkeys(key for row in rows for key in row)
              if key.startswith(("fd_", "kad_", "sim_aa_90_", "sim_aa_95_")) and key != fd]
    for key in others:
        columns.insert(-2, (key, lambda r, key=key: _number(r.get(key), 3 if key.startswith("sim_aa_") else 2)))
    hidden = at_chance(rows[0], references) if rows else []
    groups = [key for key in dict.fromkeys(key for row in rows for key in row)
              if key.startswith("acc_") and not key.endswith("_chance") and key[4:] not in hidden]
    for key in groups:
        columns.insert(-2, (key[4:], lambda r, key=key: _number(r.get(key), 2)))
    cells = [[head for head, _ in columns], *[[str(cell(row)) for _, cell in columns] for row in rows]]
    if any(row.get(f"{key}_chance") is not None for row in rows for key in groups):
        chance = {key[4:]: _number(rows[0].get(f"{key}_chance"), 2) for key in groups}
        cells.append(["chance", *(chance.get(head, "") for head, _ in columns[1:])])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    lines.append("real test clips: " + ", ".join(f"{key} {_shown(value)}" for key, value in references.items()))
    if hidden:
        said = ", ".join(f"{group} (real clips {references[f'acc_{group}_real']:.3f}, chance "
                         f"{rows[0][f'acc_{group}_chance']:.3f})" for group in hidden)
        lines.append(f"left out, for the tagger cannot tell them: {said}")
    lines += notes
    if any(row.get("from_cache") for row in rows):
        lines.append("* figures from the cache of an earlier evaluation of the same teacher; the time was measured "
                     "now, on one batch")
    return "\n".join(lines) + "\n"


def plot_fd(path: Path, rows: Sequence[dict[str, Any]], evaluator: str = "tagger") -> None:
    """Plot the Frechet distance against network calls, both on log axes, one line a model.

    Args:
        path: The PNG to write, whole or not at all.
        rows: Rows of the table.
        evaluator: Name of the classifier behind the distance.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    key = f"fd_{evaluator}"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ticks: set[float] = set()
    for model, marker in zip(MODELS, "os^D", strict=True):
        points = [(r["network_calls"], r[key], r["steps"]) for r in sort_rows(rows)
                  if r["model"] == model and r.get("network_calls") and r[key] is not None]
        if not points:
            continue
        calls, distances, steps = zip(*points, strict=True)
        axes.plot(calls, distances, marker=marker, label=NAMES[model])
        for x, y, count in points:
            axes.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        ticks.update(calls)
    axes.set(xscale="log", yscale="log", xlabel="network calls a clip (numbers at the points: steps)", ylabel=key)
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(True, alpha=0.25)
    axes.set_title(f"n = {min((row['n'] for row in rows), default=0)} clips, lower is better", fontsize=10)
    if ticks:
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    # JSON has no NaN; a figure that is none must not look like one.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
