"""Streams of growing length: seconds to the first sound, seconds of work a second of music, peak memory.

Each length is a process of its own, so that its peak is its own; the baseline is the shortest one. Beside them, the
same music made whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from musiccm.commands._timing import peak_mib, row
from musiccm.pipeline import Pipeline

STEPS, PROMPT = 4, "a calm piano melody over soft strings, 80 bpm"
LENGTHS_S = (60.0, 300.0, 1800.0)
WHOLE_S = 60.0
STUDENTS = {"musiccm-tiny": "musiccm-tiny-student"}


def play(bundle: str, seconds: float, whole: bool) -> dict[str, float]:
    """One piece, in a process of its own."""
    pipeline = Pipeline.from_pretrained(bundle).to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline(PROMPT, STEPS)  # warm-up; it passes every network
    before = peak()
    start = time.perf_counter()
    first, samples, calls = 0.0, 0, 0
    if whole:
        samples = len(pipeline.compose(PROMPT, seconds, STEPS))
        first = time.perf_counter() - start
    else:
        stream = pipeline.stream(PROMPT, seconds, STEPS)
        for chunk in stream:
            first = first or time.perf_counter() - start
            calls = calls or stream.calls
            samples += len(chunk)
    spent = time.perf_counter() - start
    return {"first_s": first, "calls": calls, "work": spent / (samples / pipeline.sample_rate_hz),
            "growth": peak() - before}


def peak() -> float:
    """MiB, on the GPU where there is one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mib()


def run(bundle: str) -> list[dict]:
    bundle = STUDENTS.get(bundle, bundle)
    jobs = [(seconds, False) for seconds in LENGTHS_S] + [(WHOLE_S, True)]
    found = []
    for seconds, whole in jobs:
        command = [sys.executable, __file__, bundle, str(seconds), str(int(whole))]
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
    *streams, whole = found
    rows = [row(f"stream of {LENGTHS_S[0]:g} s: calls until the first sound", [streams[0]["calls"]], [], "calls"),
            row(f"stream of {WHOLE_S:g} s: first sound, against the piece made whole",
                [streams[LENGTHS_S.index(WHOLE_S)]["first_s"]], [whole["first_s"]], "s")]
    for seconds, figures in zip(LENGTHS_S[1:], streams[1:], strict=True):
        name = f"stream of {seconds:g} s, against {LENGTHS_S[0]:g} s"
        rows.append(row(f"{name}: work a second of music", [figures["work"]], [streams[0]["work"]], "s/s", 1))
        # peak memory moves in steps of the allocator's; what counts is that it does not follow the length
        rows.append(row(f"{name}: peak memory above a clip's", [figures["growth"]], [streams[0]["growth"]], "MiB"))
    rows.append(row(f"{WHOLE_S:g} s made whole, against its stream: work a second of music",
                    [whole["work"]], [streams[LENGTHS_S.index(WHOLE_S)]["work"]], "s/s"))
    return rows


if __name__ == "__main__":
    print(json.dumps(play(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "1")))
