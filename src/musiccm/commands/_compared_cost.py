"""What the runs that are compared cost to train, and whether that is the same."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

#: Costs that differ by more than this share are no equal costs.
TOLERANCE = 0.05


def cost_s(run: dict[str, Any]) -> float | None:
    """What a run's training cost: processor seconds on a CPU, else seconds of a device times devices; None if unknown.

    Args:
        run: Content of its results.json.

    Returns:
        Seconds.
    """
    training = run.get("training") or {}
    if training.get("processor_seconds") is not None:  # the first process's; the others have as much to do
        return float(training["processor_seconds"] * training.get("devices", 1))
    return None if training.get("seconds") is None else float(training["seconds"] * training.get("devices", 1))


def cost_unit(runs: Sequence[dict[str, Any]]) -> str | None:
    """What the cost of all runs is counted in; None where they cannot be compared, or one is not known."""
    found = {(run["training"].get("device"), run["training"].get("processor_seconds") is None)
             for run in runs if run.get("training")}
    if len(found) != 1 or any(cost_s(run) is None for run in runs):
        return None
    ((device, accelerated),) = found
    return f"{'device' if accelerated else 'processor'} minutes of training ({device})"


def training_table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an experiment: what its runs took.

    Args:
        runs: Contents of their results.json.

    Returns:
        The rows; none where no run states it.
    """
    rows = []
    for experiment in dict.fromkeys(run["experiment"] for run in runs):
        stated = [run["training"] for run in runs if run["experiment"] == experiment and run.get("training")]
        if not stated:
            continue
        processor = [t["processor_seconds"] / 60 for t in stated if t.get("processor_seconds") is not None]

        def each(key: str, stated: list[dict[str, Any]] = stated) -> str:
            return ", ".join(dict.fromkeys("-" if t.get(key) is None else str(t[key]) for t in stated))

        rows.append({
            "experiment": experiment, "objective": each("objective"), "runs": len(stated),
            "minutes": f"{fmean(t['seconds'] / 60 for t in stated):.3g}",
            "processor minutes": f"{fmean(processor):.3g}" if processor else "-",
            "steps": each("steps"), "batch": each("batch"), "device": each("device"), "devices": each("devices"),
            "went on from": each("start"),
        })
    return rows


def cost_notes(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader should know of the runs' costs.

    Args:
        runs: Contents of their results.json.

    Returns:
        Sentences.
    """
    notes = []
    if unknown := list(dict.fromkeys(run["experiment"] for run in runs if cost_s(run) is None)):
        notes.append(f"what training took is not stated by {', '.join(unknown)}")
    known = [run for run in runs if cost_s(run) is not None]
    if known and cost_unit(known) is None:
        devices = sorted({str(run["training"].get("device")) for run in known})
        notes.append(f"trained on different devices ({', '.join(devices)}): their times do not compare")
    elif known:
        minutes = {name: fmean((cost_s(run) or 0) / 60 for run in known if run["experiment"] == name)
                   for name in dict.fromkeys(run["experiment"] for run in known)}
        if max(minutes.values()) > (1 + TOLERANCE) * min(minutes.values()):
            said = ", ".join(f"{name} {value:.3g}" for name, value in sorted(minutes.items(), key=lambda pair: pair[1]))
            notes.append(f"not at equal cost: {cost_unit(known)} differ by more than {TOLERANCE:.0%}: {said}")
    if (starts := {str((run.get("training") or {}).get("start")) for run in known}) != {"None"} and len(starts) > 1:
        notes.append("some went on from a student whose own training is not counted, see `went on from`")
    return notes
