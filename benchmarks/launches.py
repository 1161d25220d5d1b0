"""What one clip costs the host: operators and, on a GPU, kernel launches and waits, recorded as one call or not.

Counted by torch.profiler, after calls in which everything of the shape was compiled, captured and sent. The text is new
in every call, so that no embedding is remembered. On a CPU a recorded call is the same computation and saves nothing;
there the counts of operators are what a later change is held against.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from musiccm.bounds import Bucket
from musiccm.commands._timing import alternating, row, student_of
from musiccm.device import choose_device
from musiccm.pipeline import Pipeline

STEPS, REPEATS, BATCH = (1, 4), 20, 8
#: Counts, by the beginnings of the profiler's names.
COUNTED = {
    "operators": ("aten::",),
    "kernels launched": ("cudaLaunchKernel", "cuLaunchKernel"),
    "graphs launched": ("cudaGraphLaunch",),
    "waits for the device": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}


def counts(call: Callable[[], object], device: str) -> dict[str, int]:
    """How often each kind of event happens in a call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        call()
    events = profiler.key_averages()
    return {kind: sum(event.count for event in events if event.key.startswith(names))
            for kind, names in COUNTED.items() if device == "cuda" or kind == "operators"}


def run(bundle: str) -> list[dict]:
    device = choose_device("auto")
    plain, recorded = (Pipeline.from_pretrained(student_of(bundle)).to(device) for _ in range(2))
    for pipeline in (plain, recorded):
        pipeline.accelerate(*((True, "inductor") if device == "cuda" else ()))
    recorded.warm_up([Bucket(count, steps) for steps in STEPS for count in (1, BATCH)], record=True)
    made = 0

    def clips(pipeline: Pipeline, count: int, steps: int) -> Callable[[], object]:
        def call() -> object:
            nonlocal made
            made += count
            return pipeline([f"slow organ chords {made + i}" for i in range(count)], steps)

        return call

    rows = []
    for steps in STEPS:
        sides = {"plain": clips(plain, 1, steps), "recorded": clips(recorded, 1, steps)}
        for call in sides.values():
            for _ in range(3):
                call()
        found = {name: counts(call, device) for name, call in sides.items()}
        rows += [row(f"{steps} step(s): {kind}, one recorded call against none", [found["recorded"][kind]],
                     [found["plain"][kind]], "a clip") for kind in found["plain"]]
        for count in (1, BATCH):
            times = alternating({"plain": clips(plain, count, steps), "recorded": clips(recorded, count, steps)},
                                REPEATS, warmup=3)
            rows.append(row(f"{steps} step(s): {count} clip(s) at once, one recorded call against none",
                            [second / count for second in times["recorded"]],
                            [second / count for second in times["plain"]], "s a clip"))
    return rows
