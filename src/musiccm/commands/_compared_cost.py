"""What the runs that are compared cost to train, and whether that is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

#: Costs that differ by more than this share are no equal costs.
TOLERANCE = 0.05


#: The objective that trains on trajectories, whose older results do not state what these took.
ON_TRAJECTORIES = "CMT"


def cost_s(run: dict[str, Any]) -> float | None:
    """What a run's training cost: processor seconds on a CPU, else seconds of a device times devices; None if unknown.

    What the trajectories took that a run was trained on is part of its cost, as far as it is stated.

    Args:
        run: Content of its results.json.

    Returns:
        Seconds.
    """
    training = run.get("training") or {}
    # the first process's; the others have as much to do
    key = "seconds" if training.get("processor_seconds") is None else "processor_seconds"
    if training.get(key) is None:
        return None
    made = training.get("trajectories") or {}
    return float(training[key] * (training.get("devices") or 1) + (made.get(key) or 0.0))


def cost_unit(runs: Sequence[dict[str, Any]]) -> str | None:
    """What the cost of all runs is counted in; None where they cannot be compared, or one is not known."""
    found = {device for run in runs for device in _devices(run)}
    if len(found) != 1 or any(cost_s(run) is None for run in runs):
        return None
    ((device, accelerated),) = found
    return f"{'device' if accelerated else 'processor'} minutes of training ({device})"


def _devices(run: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """What computed the steps of a run, and its trajectories: its name, and whether it is an accelerator."""
    training = run.get("training") or {}
    for part in (training, training.get("trajectories") or {}):
        if part.get("seconds") is not None:
            yield part.get("device"), part.get("processor_seconds") is None


def _lacks_trajectories(run: dict[str, Any]) -> bool:
    """Whether a run was trained on trajectories without stating what these took."""
    training = run.get("training") or {}
    made = training.get("trajectories")
    return training.get("objective") == ON_TRAJECTORIES if made is None else made.get("seconds") is None


def training_table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an experiment: what its runs took.

    `steps` are the student's, `updates` those of student and critic together. Older results state the latter alone, and
    call them steps.

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
        made = [training["trajectories"] for training in stated if training.get("trajectories")]
        counted = [training if "updates" in training else {**training, "steps": None, "updates": training.get("steps")}
                   for training in stated]

        def each(key: str, stated: list[dict[str, Any]] = counted) -> str:
            return ", ".join(dict.fromkeys("-" if t.get(key) is None else str(t[key]) for t in stated))

        rows.append({
            "experiment": experiment, "objective": each("objective"), "runs": len(stated),
            "minutes": _minutes(stated, "seconds"), "processor minutes": _minutes(stated, "processor_seconds"),
            **({"minutes of trajectories": _minutes(made, "seconds"),
                "processor minutes of trajectories": _minutes(made, "processor_seconds")} if made else {}),
            "steps": each("steps"), "updates": each("updates"), "batch": each("batch"), "device": each("device"),
            "devices": each("devices"), "went on from": each("start"),
        })
    return rows


def _minutes(parts: Sequence[dict[str, Any]], key: str) -> str:
    """The mean over runs; of those that state it, where some do not."""
    found = [part[key] / 60 for part in parts if part.get(key) is not None]
    of = f" ({len(found)} of {len(parts)} runs)" if len(found) < len(parts) else ""
    return f"{fmean(found):.3g}{of}" if found else "-"


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
    if without := list(dict.fromkeys(run["experiment"] for run in runs if _lacks_trajectories(run))):
        notes.append(f"what the trajectories took is not stated by {', '.join(without)}, and not in the cost")
    known = [run for run in runs if cost_s(run) is not None]
    if known and cost_unit(known) is None:
        devices = sorted({str(device) for run in known for device, _ in _devices(run)})
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
