"""Tracks of the demo corpus that are composed, rendered and written a second, on all cores, against real time."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path

from musiccm.commands._timing import row
from musiccm.data.demo.corpus import write_corpus
from musiccm.data.demo.tracks import DURATION_S

CPU_ONLY = True
TRACKS, ROUNDS = 96, 3
#: What is asked for, in tracks a second.
ASKED = 20.0


def tracks_per_second(seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        write_corpus(Path(folder) / "demo", TRACKS, seed, test_tracks=1)
        return (TRACKS + 1) / (time.perf_counter() - start)


def run(bundle: str) -> list[dict]:
    real_time = 1.0 / DURATION_S  # playing the tracks one after the other
    tracks_per_second(0)  # the processes' first imports
    rates = [tracks_per_second(seed) for seed in range(1, ROUNDS + 1)]
    case = f"render {DURATION_S} s tracks on {os.cpu_count()} cores, against playing them"
    return [row(case, rates, [real_time], "tracks/s", ASKED / real_time, lower_is_better=False)]
