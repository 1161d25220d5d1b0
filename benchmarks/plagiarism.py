"""SIM_AA of 1,000 clips against 1,000,000 training windows on disk, beside all cosines in float64: time and memory.

`python benchmarks/plagiarism.py --rows 100000 --queries 1000` runs a smaller one by itself. Embeddings are drawn:
clusters, as those of music are, four windows a clip. Each side runs in a process of its own, so that its memory can be
told.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from musiccm.commands._timing import now, peak_mib, row
from musiccm.device import choose_device
from musiccm.metrics.text_audio import unit_rows
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.index_writer import PlannedClip, write_index
from musiccm.similarity.nearest import Queries, nearest_clips

ROWS, QUERIES, WIDTH, WINDOWS, CLUSTERS = 1_000_000, 1_000, 512, 4, 2_000
#: What is asked for, in seconds, on 2 cores.
ASKED_S = 60.0


@functools.cache
def centres() -> torch.Tensor:
    return torch.randn(CLUSTERS, WIDTH, generator=torch.Generator().manual_seed(0))


def drawn(count: int, seed: int) -> torch.Tensor:
    """Rows about shared centres; of one cluster, they have cosines of about 0.8."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(CLUSTERS, (count,), generator=generator)
    return centres()[chosen] + 0.5 * torch.randn(count, WIDTH, generator=generator)


def make_index(folder: Path, rows: int) -> None:
    clips = [PlannedClip(f"clip{n}", f"/audio/{n}.flac", [10.0 * w for w in range(WINDOWS)])
             for n in range(rows // WINDOWS)]
    key = {"clap": "drawn", "corpus": "drawn", "sample_rate_hz": 1, "window_samples": 10, "hop_samples": 10}
    write_index(folder, key, {"bundle": "none"}, clips, WIDTH,
                lambda first, last: drawn((last - first) * WINDOWS, first + 1))


def ours(folder: Path, queries: torch.Tensor) -> torch.Tensor:
    return nearest_clips(TrainingIndex(folder), Queries(queries, [1] * len(queries))).cosine_QK[:, 0]


def naive(folder: Path, queries: torch.Tensor) -> torch.Tensor:
    """All rows in memory in float64, every cosine in float64, blocks of 8,192 rows."""
    index = TrainingIndex(folder)
    rows, best = unit_rows(index.read(0, index.n_rows)), torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    best = best.to(queries.device)
    unit = unit_rows(queries)
    for block in rows.split(8192):
        best = torch.maximum(best, (unit @ block.T.to(unit.device)).amax(dim=1))
    return best


def side(name: str, folder: Path, queries: int) -> dict:
    """Seconds and peak memory of one side, beyond what the imports and the queries take."""
    device = choose_device("auto")
    audio = drawn(queries, -1).to(device)
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    before = peak_mib()
    start = now()
    best = {"ours": ours, "naive": naive}[name](folder, audio)
    seconds = now() - start
    peak = peak_mib()
    return {"seconds": seconds, "mib": peak - before, "best": best.tolist()}


def in_a_process(name: str, folder: Path, queries: int) -> dict:
    command = [sys.executable, __file__, "--side", name, "--index", str(folder), "--queries", str(queries)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(bundle: str, rows: int = ROWS, queries: int = QUERIES) -> list[dict]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        make_index(folder, rows)
        found = {name: in_a_process(name, folder, queries) for name in ("naive", "ours")}
    difference = max(abs(a - b) for a, b in zip(found["ours"]["best"], found["naive"]["best"], strict=True))
    assert difference < 1e-12, f"the two sides differ by {difference}"
    case = f"SIM_AA, {queries} clips against {rows} windows of {WIDTH}"
    asked = [row(f"{case}, against the time asked for", [found["ours"]["seconds"]], [ASKED_S], "s", 1.0)]
    return [
        *(asked if (rows, queries) == (ROWS, QUERIES) else []),
        row(f"{case}, against all cosines in float64", [found["ours"]["seconds"]], [found["naive"]["seconds"]], "s"),
        row(f"{case}, memory, against all cosines in float64", [found["ours"]["mib"]], [found["naive"]["mib"]], "MiB"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--side", choices=("ours", "naive"))
    parser.add_argument("--index", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.index, options.queries)))
    else:
        from musiccm.commands.bench import table

        print(table(run("", options.rows, options.queries)))
