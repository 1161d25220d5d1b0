"""Timing two sides in one run, and the rows that a benchmark hands back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROW_KEYS = ("case", "ours", "baseline", "unit", "ratio", "target", "n")


def now() -> float:
    """Seconds, once the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = now()
    function()
    return now() - start


def peak_mib(device: str = "cpu") -> float:
    """Largest memory of this process so far, in MiB: of the GPU's where it computes on one, else resident memory.

    The latter is read where Linux keeps it for the program itself: what `getrusage` tells goes on from the process that
    started it.

    Args:
        device: Where it computes.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / (1 << 20)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def alternating(sides: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time several functions in turn, so that a machine which slows down slows all of them.

    Args:
        sides: Functions by name.
        repeats: Timed calls of each.
        warmup: Calls of each before that, not timed.

    Returns:
        Seconds of every timed call, by name.
    """
    for _ in range(warmup):
        for function in sides.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, function in sides.items():
            times[name].append(seconds_of(function))
    return times


def row(
    case: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    unit: str,
    target: float | None = None,
    lower_is_better: bool = True,
) -> dict[str, Any]:
    """One row from repeated measurements of both sides.

    Args:
        case: What was measured, and against what.
        ours: Our measurements.
        baseline: The baseline's, from the same run; empty for a figure that has none.
        unit: Of both.
        target: The ratio that is asked for.
        lower_is_better: Whether a smaller figure is the better one (times), or a larger one (rates).

    Returns:
        Medians; `ratio`, above 1 where ours is better; `n` measurements of ours.
    """
    mine, theirs = statistics.median(ours), statistics.median(baseline) if baseline else None
    better, worse = (mine, theirs) if lower_is_better else (theirs, mine)
    ratio = None if theirs is None or not better else worse / better  # type: ignore[operator]
    return {"case": case, "ours": mine, "baseline": theirs, "unit": unit, "ratio": ratio, "target": target,
            "n": len(ours)}


def student_of(bundle: str) -> str:
    """The student that a few-step benchmark samples: the packaged one for the packaged teacher, else the bundle."""
    packaged = {"musiccm-tiny": "musiccm-tiny-student", "musiccm-tiny-tango": "musiccm-tiny-tango-student",
                "musiccm-tiny-melody": "musiccm-tiny-melody-student"}
    return packaged.get(bundle, bundle)
