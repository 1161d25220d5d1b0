"""lay the results of several runs side by side: means over seeds, ratios to the teacher."""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import read_json

log = logging.getLogger(__name__)

#: Schema of results.json that is understood.
SCHEMA = 1


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
    runs = [read_run(Path(run)) for run in args.runs]
    say(markdown(compare(runs)))
    if unknowable := sorted({group for run in runs for group in untold(run)}):
        say(f"left out, for the tagger cannot tell them: {', '.join(unknowable)}")
    return 0


def read_run(path: Path) -> dict[str, Any]:
    """Read the results of a run.

    Args:
        path: `results.json`, or the directory of the run that holds it.

    Returns:
        Its content.

    Raises:
        MusiccmError: There is none, or it has another schema.
    """
    path = path / "results.json" if path.is_dir() else path
    result = read_json(path, "the results of an evaluated run")
    if result.get("schema") != SCHEMA or not result.get("rows"):
        raise MusiccmError(f"{path}: expected rows under schema {SCHEMA}; evaluate the run again (make eval)")
    return {**result, "path": path}


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the runs of each experiment.

    Ratios are taken within a run, then averaged: to the teacher at its most steps, and to the guided teacher with as
    many network calls (a guided step is two, so it takes half as many steps), by whichever of the samplers that it was
    scored with is best there. Times of different machines are not
    averaged: where those of an experiment's runs differ, there is none.

    Args:
        runs: Contents of their results.json.

    Returns:
        One row an experiment, model and step count, in the order in which the experiments came.

    Raises:
        MusiccmError: The runs were scored on different numbers of clips, or by different evaluators.
    """
    from musiccm.evaluation.candidates import compared_model, present_name
    from musiccm.evaluation.registry import head_of, shown_keys
    from musiccm.evaluation.results import timed, without_times

    first = runs[0]
    metric = fd_key(first)
    for run in runs:
        if (run["n"], fd_key(run)) != (first["n"], metric):
            raise MusiccmError(f"{run['path']}: {fd_key(run)} on n = {run['n']}, but {first['path']} has {metric} on "
                               f"n = {first['n']}; distances of different n or evaluators cannot be compared")
    groups: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
    machines: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        machines[run["experiment"]].add(repr(run.get("machine")))
    apart = of_training_clips(runs)
    for run in runs:
        teachers = {row["network_calls"]: row[metric] for row in run["rows"] if row["model"] == "teacher"}
        strongest: dict[float, float] = {}
        for row in run["rows"]:
            if compared_model(row["model"]).teacher and row[metric] is not None:
                calls = row["network_calls"]
                strongest[calls] = min(row[metric], strongest.get(calls, row[metric]))
        for row in run["rows"]:
            best, equal = teachers.get(max(teachers, default=0)), strongest.get(row["network_calls"])
            row = timed(row) if len(machines[run["experiment"]]) == 1 else without_times(row)
            metrics = {head_of(key, metric.removeprefix("fd_")): row[key] for key in shown_keys([row])
                       if row[key] is not None and key not in {f"acc_{group}" for group in untold(run)} | apart}
            metrics |= {"x most steps": row[metric] / best} if best else {}
            metrics |= {"x equal calls": row[metric] / equal} if equal else {}
            groups[run["experiment"], present_name(row["model"]), row["steps"]].append(metrics)
    return [
        {"experiment": experiment, "model": model, "steps": steps, "runs": len(found)}
        | {name: mean_std([metrics[name] for metrics in found if name in metrics]) for name in names(found)}
        for (experiment, model, steps), found in groups.items()
    ]


def of_training_clips(runs: list[dict[str, Any]]) -> set[str]:
    """The keys that depend on the training clips, where the runs compared with different ones; that is said."""
    from musiccm.evaluation.registry import find

    if len({json.dumps(run.get("sim_aa_gallery"), sort_keys=True) for run in runs}) == 1:
        return set()
    keys = {key for run in runs for row in run["rows"] for key in row
            if (found := find(key)) and found.metric.scope == "training"}
    if keys:
        log.warning("SIM_AA is left out: the runs compared with different training clips (sim_aa_gallery); test the "
                    "older ones again")
    return keys


def fd_key(run: dict[str, Any]) -> str:
    """The Frechet distance's column: `fd_` and the evaluator."""
    from musiccm.evaluation.registry import find

    return next(key for key in run["rows"][0] if (found := find(key)) and found.metric.name == "fd")


def untold(run: dict[str, Any]) -> list[str]:
    """The attributes that the run's tagger cannot tell."""
    from musiccm.evaluation.results import at_chance

    return at_chance(run["rows"][0], run.get("references", {}))


def names(found: list[dict[str, float]]) -> list[str]:
    """Every metric that any of the runs has."""
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def mean_std(values: list[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation where there are two values or more."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(shown(head, row.get(head)) for head in heads)} |" for row in rows]
    return "\n".join(lines)


def shown(head: str, value: Any) -> str:
    """A cell: text and whole numbers as they are, metrics with their spread."""
    if not isinstance(value, tuple):
        return "-" if value is None else str(value)
    mean, deviation = value
    if head.startswith("calls"):
        return f"{mean:g}"
    return f"{mean:.3g}" + ("" if deviation is None or deviation < 1e-9 else f" ± {deviation:.2g}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="evaluated runs, or their results.json; those of one experiment are averaged")
    return parser
