"""Tracks of the demo corpus that are composed, rendered and written a second, on all cores, against real time.

And what a track takes of one core, all processes together: that is what other numbers of cores follow from.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import tempfile
import time
from pathlib import Path

from musiccm.commands._timing import row
from musiccm.data.demo.corpus import write_corpus
from musiccm.data.demo.tracks import DURATION_S

CPU_ONLY = True
TRACKS, ROUNDS = 240, 3
#: What is asked for, in tracks a second, and on how many cores.
ASKED, CORES = 100.0, 16


def costs(seed: int, tracks: int) -> tuple[float, float]:
    """Tracks a second, and seconds of one core a track."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        start, before = time.perf_counter(), _spent_s()
        write_corpus(Path(folder) / "demo", tracks, seed, test_tracks=1, validation_tracks=0)
        return (tracks + 1) / (time.perf_counter() - start), (_spent_s() - before) / (tracks + 1)


def _spent_s() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(used.ru_utime + used.ru_stime
               for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def run(bundle: str) -> list[dict]:
    real_time = 1.0 / DURATION_S  # playing the tracks one after the other
    costs(0, 1)  # the first imports
    rates, seconds = zip(*(costs(seed, TRACKS) for seed in range(1, ROUNDS + 1)), strict=True)
    case = f"render {TRACKS + 1} tracks of {DURATION_S} s on {os.cpu_count()} cores, against playing them"
    return [row(case, rates, [real_time], "tracks/s", None, lower_is_better=False),
            row(f"seconds of one core a track, against {ASKED:g} tracks/s on {CORES}", seconds, [CORES / ASKED], "s",
                1.0)]
