"""Streams of growing length: seconds to the first sound, seconds of work a second of music, peak memory.

Each length is a process of its own, so that its peak is its own; the baseline is the shortest one. Beside them, the
same music made whole. With each decoder of the bundle; the picture shows work and memory against length.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from musiccm.bounds import Bucket
from musiccm.commands._timing import now, peak_mib, row, student_of
from musiccm.device import choose_device
from musiccm.evaluation.bundle_quality import decoders
from musiccm.files import write_atomically
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

STEPS, PROMPT = 4, "a calm piano melody over soft strings, 80 bpm"
LENGTHS_S = (60.0, 120.0, 300.0, 600.0, 1800.0)
WHOLE_S = 60.0
#: Of a piece whose stream is held against the piece made whole; its last window is shifted back.
SAME_S = 31.3
#: What the picture shows: axis labels by the key of `play`'s figures.
SHOWN = {"growth": "peak memory above a clip's, MiB", "work": "seconds of work a second of music"}


def play(bundle: str, decoder: str, seconds: float, whole: bool) -> dict[str, float]:
    """One piece, in a process of its own."""
    pipeline = Pipeline.from_pretrained(bundle, decoder=decoder)
    device = choose_device("auto")
    pipeline.to(device)
    if device == "cuda":  # compiled for the windows that a stream's calls and a piece's hold at most
        pipeline.accelerate(half=True, backend="inductor")
        pipeline.warm_up([Bucket(STEPS, STEPS, WHOLE_S), Bucket(8, STEPS, WHOLE_S)])
    pipeline(PROMPT, STEPS)  # warm-up; it passes every network
    before = peak_mib(device)
    start = now()
    if whole:
        samples = len(pipeline.compose(PROMPT, seconds, STEPS))
        spent = now() - start
        parts = torch.cat(list(pipeline.stream(PROMPT, SAME_S, STEPS)))
        difference = float((parts - pipeline.compose(PROMPT, SAME_S, STEPS)).abs().max())
        return {"first_s": spent, "work": spent * pipeline.sample_rate_hz / samples, "difference": difference}
    first, samples, calls = 0.0, 0, 0
    stream = pipeline.stream(PROMPT, seconds, STEPS)
    for chunk in stream:
        first = first or time.perf_counter() - start
        calls = calls or stream.calls
        samples += len(chunk)
    return {"first_s": first, "calls": calls, "work": (now() - start) * pipeline.sample_rate_hz / samples,
            "growth": peak_mib(device) - before}


def apart(bundle: str, decoder: str, seconds: float, whole: bool) -> dict[str, float]:
    """`play` in a process of its own."""
    command = [sys.executable, __file__, bundle, decoder, str(seconds), str(int(whole))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def run(bundle: str) -> list[dict]:
    bundle = student_of(bundle)
    return [found for decoder in decoders(Bundle.from_pretrained(bundle)) for found in rows_of(bundle, decoder)]


def rows_of(bundle: str, decoder: str) -> list[dict]:
    streams = {seconds: apart(bundle, decoder, seconds, False) for seconds in LENGTHS_S}
    whole = apart(bundle, decoder, WHOLE_S, True)
    shortest, alike = streams[LENGTHS_S[0]], streams[WHOLE_S]
    rows = [row(f"{decoder} decoder: network calls until the first sound", [shortest["calls"]], [], "calls"),
            row(f"{decoder} decoder: first sound of a stream of {WHOLE_S:g} s, against the piece made whole",
                [alike["first_s"]], [whole["first_s"]], "s"),
            row(f"{decoder} decoder: {WHOLE_S:g} s made whole, against its stream: work a second of music",
                [whole["work"]], [alike["work"]], "s/s"),
            row(f"{decoder} decoder: largest difference of a stream of {SAME_S:g} s and the piece made whole",
                [whole["difference"]], [], "of 1")]
    for seconds, figures in streams.items():
        against = "" if figures is shortest else f", against {LENGTHS_S[0]:g} s"
        # peak memory moves in steps of the allocator's; what counts is that it does not follow the length
        for key, unit, target in (("work", "s/s", 1.0), ("growth", "MiB", None)):
            baseline = [shortest[key]] if against else []
            case = f"{decoder} decoder, stream of {seconds:g} s{against}: {SHOWN[key]}"
            rows.append(row(case, [figures[key]], baseline, unit, target if against else None)
                        | {"shown": key, "decoder": decoder, "length_s": seconds})
    return rows


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw memory and work against length, a line a decoder, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [found for found in rows if "shown" in found]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for decoder, marker in zip(dict.fromkeys(found["decoder"] for found in points), "os", strict=False):
            line = [(found["length_s"] / 60, found["ours"]) for found in points
                    if (found["shown"], found["decoder"]) == (key, decoder)]
            axes.plot(*zip(*line, strict=True), marker=marker, label=f"{decoder} decoder")
        minutes = sorted({found["length_s"] / 60 for found in points})
        axes.set(xscale="log", xlabel="length of the stream, minutes", ylabel=label)
        axes.set_xticks(minutes, [f"{tick:g}" for tick in minutes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.25)
        axes.legend()
    figure.suptitle(f"streams of one prompt, {STEPS} steps, a process each (n = 1)", fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


if __name__ == "__main__":
    print(json.dumps(play(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "1")))
