"""lay the results of several runs side by side: means over seeds, ratios to the teacher, what training cost."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from musiccm.commands._compared_cost import cost_notes, cost_s, cost_unit, training_table
from musiccm.commands._compared_plots import Measure, plot_objectives
from musiccm.commands._compared_runs import SAME, fd_key, read_run, read_runs, refuse_unlike, unlike_keys
from musiccm.errors import MusiccmError
from musiccm.terminal import say

__all__ = ["compare", "main", "read_run"]

#: What stands in the cell of another number, or is said once for all rows.
_BESIDE = re.compile(r".+_(low|high|bias|why)|floor_fd_.+|draws_.+")
#: What the comparison is about, whether other tables show it or not.
_ABOUT = re.compile(r"excess_fd_.+|(kad|coverage)_.+_ratio")


def main(argv: list[str]) -> int:
    """Run `musiccm compare`.

    Args:
        argv: The arguments behind `compare`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: A file that is no results.json, or runs that cannot stand in one table.
    """
    args = _parser().parse_args(argv)
    runs = read_runs(args.runs)
    refuse_unlike(runs)
    apart = unlike_keys(runs)
    by_decoder = any("decoder" in row for run in runs for row in run["rows"])
    if args.out and not by_decoder:
        raise MusiccmError("--out: none of the runs states excess_fd_* and the decoder of its rows, as those of "
                           "versions before 0.3; evaluate them again, or leave --out away")
    if args.out:
        from musiccm.commands._outputs import require_room

        require_room(Path(args.out) / "compare.md")
    decoders = decoders_of(runs) if by_decoder else [None]
    tables = {decoder or "": compare(runs, decoder, apart) for decoder in decoders}
    text = "\n\n".join([
        *(f"{f'Decoder: {decoder}' + chr(10) * 2 if decoder else ''}{markdown(rows)}"
          for decoder, rows in tables.items()),
        *([markdown(costs)] if by_decoder and (costs := training_table(runs)) else []),
        *notes_of(runs, tables),
    ])
    say(text)
    if args.out:
        _write(Path(args.out), runs, tables, text)
    return 0


def _write(out: Path, runs: list[dict[str, Any]], tables: dict[str, list[dict[str, Any]]], text: str) -> None:
    """The tables as text and as JSON, and a picture a decoder."""
    from musiccm.files import write_json, write_text

    embedder = fd_key(runs[0]).removeprefix("fd_")
    unit = cost_unit(runs)
    minutes = {experiment: fmean((cost_s(run) or 0) / 60 for run in runs if run["experiment"] == experiment)
               for experiment in {run["experiment"] for run in runs}} if unit else {}
    write_text(out / "compare.md", text + "\n")
    write_json(out / "compare.json", {
        "n": runs[0]["n"], "training": training_table(runs), "notes": notes_of(runs, tables),
        "rows": {decoder: [{key: value._asdict() if isinstance(value, Measure) else value for key, value in row.items()}
                           for row in rows] for decoder, rows in tables.items()}})
    several = len(runs) > len({run["experiment"] for run in runs})
    bars = "standard deviations over runs, else 95 % intervals" if several else "95 % intervals"
    for decoder, rows in tables.items():
        plot_objectives(out / f"objectives_{decoder}.png", rows, embedder, minutes, unit,
                        f"decoder: {decoder}, n = {runs[0]['n']} clips, bars: {bars}")
    say(f"written to {out}")


def decoders_of(runs: list[dict[str, Any]]) -> list[str | None]:
    """The decoders that any row went through: those that are known, then others."""
    from musiccm.evaluation.rows import decoder_of
    from musiccm.models.bundle.bundle import DECODERS

    found = {decoder_of(row) for run in runs for row in run["rows"]}
    return [*(decoder for decoder in DECODERS if decoder in found), *sorted(found - set(DECODERS))]


def compare(
    runs: list[dict[str, Any]], decoder: str | None = None, apart: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Mean and standard deviation over the runs of each experiment.

    Ratios are taken within a run, then averaged: to the teacher at its most steps, and to the best of the teacher's
    rows with as many network calls (a guided step is two, so it takes half as many steps). Rows that state the ratios
    of their excess over the floor are shown with these, others with the ratios of their distances. Times of different
    machines are not averaged: where those of an experiment's runs differ, there is none.

    Args:
        runs: Contents of their results.json.
        decoder: Take rows through this decoder alone; None takes all, under the names that versions before 0.3 gave.
        apart: Keys to leave out.

    Returns:
        One row an experiment, model and step count, in the order in which the experiments came.
    """
    from musiccm.evaluation.candidates import compared_model, present_name
    from musiccm.evaluation.registry import head_of
    from musiccm.evaluation.results import timed, without_times
    from musiccm.evaluation.rows import decoder_of

    metric = fd_key(runs[0])
    groups: dict[tuple[str, str, int], list[dict[str, Measure]]] = defaultdict(list)
    machines: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        machines[run["experiment"]].add(repr(run.get("machine")))
    for run in runs:
        rows = [row for row in run["rows"] if decoder is None or decoder_of(row) == decoder]
        left_out = {f"acc_{group}" for group in untold(run)} | set(apart)
        counted = [row for row in rows if row.get("network_calls") is not None]
        teachers = {row["network_calls"]: row.get(metric) for row in counted if row["model"] == "teacher"}
        strongest: dict[float, float] = {}
        for row in counted:
            if compared_model(row["model"]).teacher and row.get(metric) is not None:
                calls = row["network_calls"]
                strongest[calls] = min(row[metric], strongest.get(calls, row[metric]))
        for row in rows:
            row = timed(row) if len(machines[run["experiment"]]) == 1 else without_times(row)
            measures = {key: Measure(row[key], None, row.get(f"{key}_low"), row.get(f"{key}_high"))
                        for key in _shown(row) if row[key] is not None and key not in left_out}
            if decoder is None:
                best, equal = teachers.get(max(teachers, default=0)), strongest.get(row.get("network_calls", 0.0))
                measures = {head_of(key, metric.removeprefix("fd_")): value for key, value in measures.items()}
                own = row.get(metric)  # null where it could not be taken
                measures |= {"x most steps": Measure(own / best)} if best and own is not None else {}
                measures |= {"x equal calls": Measure(own / equal)} if equal and own is not None else {}
            model = present_name(row["model"])
            if row["model"] == "student_fast":  # within one decoder it is the student
                model = "student" if decoder is not None else "student_fast"
            groups[run["experiment"], model, row["steps"]].append(measures)
    return [
        {"experiment": experiment, "model": model, "steps": steps, "runs": len(found)}
        | {name: over_runs([measures[name] for measures in found if name in measures]) for name in names(found)}
        for (experiment, model, steps), found in groups.items()
    ]


def _shown(row: dict[str, Any]) -> list[str]:
    """The keys of a row's numbers, without those that stand in another's cell."""
    from musiccm.evaluation.registry import shown_keys

    known = set(shown_keys([row]))
    return [key for key, value in row.items() if not _BESIDE.fullmatch(key) and (
        key in known or (_ABOUT.fullmatch(key) and (value is None or isinstance(value, int | float))))]


def _place(head: str) -> int:
    """Where a column stands: what the row is of, what the comparison is about, all others."""
    first = ("experiment", "model", "steps", "runs", "network_calls", "excess_fd_", "kad_", "coverage_", "recall_")
    return next((n for n, start in enumerate(first) if head.startswith(start)), len(first))


def notes_of(runs: list[dict[str, Any]], tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What a reader of the tables should know.

    Args:
        runs: Contents of their results.json.
        tables: Rows by decoder; of versions before 0.3 under an empty name.

    Returns:
        Sentences.
    """
    notes = []
    if unknowable := sorted({group for run in runs for group in untold(run)}):
        notes.append(f"left out, for the tagger cannot tell them: {', '.join(unknowable)}")
    if "" in tables:
        return notes
    metric = fd_key(runs[0])
    kinds = {str(run.get("floor")) for run in runs if run.get("floor")}
    notes.append(f"floor: {kinds.pop()}" if len(kinds) == 1 else
                 f"the floors are not of one kind ({', '.join(sorted(kinds))}): excesses over them do not compare"
                 if kinds else "no run says what its floor is")
    for decoder in tables:
        floors = {str(run["path"].parent): found for run in runs
                  if (found := floor_of(run, decoder, metric)) is not None}
        notes += _unlike(floors, f"the floors through the decoder {decoder} differ",
                         "the runs were not scored on the same clips, and their excesses do not compare")
        teachers = {str(run["path"].parent): found for run in runs
                    if (found := teacher_of(run, decoder, metric)) is not None}
        notes += _unlike(teachers, f"the teacher at its most steps differs through the decoder {decoder}",
                         "the runs do not have one teacher, or not one test set")
    return notes + cost_notes(runs)


def floor_of(run: dict[str, Any], decoder: str, metric: str) -> float | None:
    """The floor of a run through a decoder: the distance that a perfect model would have."""
    from musiccm.evaluation.rows import decoder_of

    return next((row[f"floor_{metric}"] for row in run["rows"]
                 if decoder_of(row) == decoder and row.get(f"floor_{metric}") is not None), None)


def teacher_of(run: dict[str, Any], decoder: str, metric: str) -> float | None:
    """The distance of the teacher at its most steps through a decoder."""
    from musiccm.evaluation.rows import decoder_of

    rows = [row for row in run["rows"] if row["model"] == "teacher" and decoder_of(row) == decoder]
    return max(rows, key=lambda row: row["steps"]).get(metric) if rows else None


def _unlike(values: dict[str, float], what: str, means: str) -> list[str]:
    """A sentence where values of several runs differ by more than rounding."""
    if len(values) < 2 or max(values.values()) - min(values.values()) <= SAME * max(map(abs, values.values())):
        return []
    return [f"{what} ({', '.join(f'{name} {value:.4g}' for name, value in values.items())}): {means}"]


def untold(run: dict[str, Any]) -> list[str]:
    """The attributes that the run's tagger cannot tell."""
    from musiccm.evaluation.results import at_chance

    # Not every row has attributes: the floor's may not.
    row = next((row for row in run["rows"] if any(key.endswith("_chance") for key in row)), run["rows"][0])
    references = {key: value for key, value in (run.get("references") or {}).items() if value is not None}
    return at_chance({"n": run["n"], **row}, references)


def names(found: list[dict[str, Measure]]) -> list[str]:
    """Every metric that any of the runs has."""
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def over_runs(values: Sequence[Measure]) -> Measure:
    """One run's value with its interval; of several, mean and sample standard deviation."""
    if len(values) == 1:
        return values[0]
    means = [value.mean for value in values]
    return Measure(fmean(means), stdev(means), runs=len(values))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    if any(head.startswith("excess_fd_") for head in heads):
        heads.sort(key=_place)
    lines = [f"| {' | '.join(_head(head) for head in heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(shown(head, row.get(head), row.get('runs', 1)) for head in heads)} |" for row in rows]
    return "\n".join(lines)


def _head(key: str) -> str:
    """How a table calls a column: numbers that are better on one side have an arrow, ratios are named so."""
    from musiccm.evaluation.registry import with_arrow

    if match := re.fullmatch(r"(.+)_equal_calls_ratio", key):
        return f"{match[1]} x equal calls"
    if match := re.fullmatch(r"(.+)_ratio", key):
        return f"{match[1]} x teacher"
    if key == "network_calls":
        return "calls"
    if key.startswith("excess_fd_"):
        return f"{key} ↓"
    return with_arrow(key, key)


def shown(head: str, value: Any, runs: int = 1) -> str:
    """A cell: text and whole numbers as they are, metrics with their interval, or their spread over runs.

    Of a metric that fewer runs than the row has could give, the cell says how many did.
    """
    if not isinstance(value, Measure):
        return "-" if value is None else str(value)
    of = f" ({value.runs} of {runs} runs)" if value.runs < runs else ""
    if head.startswith("calls") or head == "network_calls":
        return f"{value.mean:g}{of}"
    text = f"{value.mean:.3g}"
    if value.low is not None and value.high is not None:
        return f"{text} [{value.low:.3g}, {value.high:.3g}]{of}"
    return text + ("" if value.deviation is None or value.deviation < 1e-9 else f" ± {value.deviation:.2g}") + of


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="evaluated runs, or their results.json; those of one experiment are averaged")
    parser.add_argument("--out", metavar="FOLDER",
                        help="also write the tables (compare.md, compare.json), and a plot a decoder of distance "
                             "against cost and of coverage against distance")
    return parser
