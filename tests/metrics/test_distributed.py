"""Two ranks give the figures of one process, with a padded repeat and with a rank that saw nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from musiccm.metrics import AttributeAccuracy, FrechetDistance, InceptionScore, KLDivergence, SimAA, TextAudioSimilarity

N, CLASSES = 23, 5


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"real": CLASSES, "fake": CLASSES, "text": 4, "audio": 4, "train": 4}
    return {name: torch.randn(N, width, generator=generator) for name, width in shapes.items()}


def run(shards: list[list[int]]) -> dict[str, Any]:
    d, train_ids = data(), [f"t{i}" for i in range(N)]
    fd, folded = FrechetDistance(), FrechetDistance(buffer_rows=4)
    inception, kl, ta = InceptionScore(), KLDivergence(), TextAudioSimilarity()
    sim = SimAA(d["train"], train_ids, thresholds=(0.5, 0.9))
    accuracy = AttributeAccuracy({"x": [0, 1, 2], "y": [3, 4]})
    for part in shards:
        ids = [f"clip{i}" for i in part]
        for metric in (fd, folded, kl):
            metric.update(d["real"][part], ids, real=True)
            metric.update(d["fake"][part], ids, real=False)
        inception.update(d["fake"][part], ids)
        ta.update(d["text"][part], d["audio"][part], ids)
        sim.update(d["audio"][part], ids)
        accuracy.update(d["fake"][part], (d["real"][part] > 0).float(), ids)
    found = {name: metric.compute() for name, metric in
             {"fd": fd, "folded": folded, "is": inception, "kl": kl, "ta": ta, "sim": sim, "acc": accuracy}.items()}
    return {**found, "retrieval": ta.retrieval_max(d["train"])}


def worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # As DistributedSampler deals: rank r gets every second clip, and the odd one out is padded with clip 0 again.
    padded = [[*range(0, N, 2)], [*range(1, N, 2), 0]][rank]
    one_rank_idle = [[*range(N)], []][rank]
    found = [run([dealt[start : start + 5] for start in range(0, len(dealt), 5)]) for dealt in (padded, one_rank_idle)]
    torch.save(found, Path(folder) / f"result{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    alone = run([list(range(N))])
    expected = {match.clip_id: match for match in alone["sim"].pop("matches")}
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        for found in torch.load(tmp_path / f"result{rank}.pt", weights_only=False):
            matches = found["sim"].pop("matches")
            assert {match.clip_id: match.nearest_id for match in matches} == {
                name: match.nearest_id for name, match in expected.items()
            }
            assert found.keys() == alone.keys()
            for name, values in found.items():
                assert values == pytest.approx(alone[name], rel=1e-9), name
