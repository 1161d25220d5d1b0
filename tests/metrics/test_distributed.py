"""Several ranks give the figures of one process, with padded repeats and with a rank that saw nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import torch.distributed as dist

from musiccm.metrics import (
    AttributeAccuracy,
    FrechetDistance,
    FrechetInfinity,
    InceptionScore,
    KernelDistance,
    KLDivergence,
    RealAudioSimilarity,
    TextAudioSimilarity,
)
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.coverage import Coverage
from musiccm.metrics.mauve import Mauve
from musiccm.similarity.sim_aa import SimAA

N, CLASSES = 23, 5


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"real": CLASSES, "fake": CLASSES, "text": 4, "audio": 4, "train": 4}
    return {name: torch.randn(N, width, generator=generator) for name, width in shapes.items()}


def run(shards: list[list[int]]) -> dict[str, Any]:
    d, train_ids = data(), [f"t{i}" for i in range(N)]
    fd, folded = FrechetDistance(), FrechetDistance(buffer_rows=4)
    kad, fd_inf, kept = KernelDistance(), FrechetInfinity(), KLDivergence(reset_real_features=False)
    mauve, coverage = Mauve(clusters=3), Coverage(k=2)
    inception, kl, ta = InceptionScore(), KLDivergence(), TextAudioSimilarity()
    ra = RealAudioSimilarity(reset_real_features=False)
    hashed = [InceptionScore(splits=3, splitting="hashed", buffer_rows=rows) for rows in (4, 1000)]
    sim = SimAA(d["train"], train_ids, thresholds=(0.5, 0.9))
    accuracy = AttributeAccuracy({"x": [0, 1, 2], "y": [3, 4]})
    for part in shards:
        ids = [f"clip{i}" for i in part]
        for metric in (fd, folded, kl, kept, kad, fd_inf, mauve, coverage, ra):
            metric.update(d["real"][part], ids, real=True)
            metric.update(d["fake"][part], ids, real=False)
        for metric in (inception, *hashed):
            metric.update(d["fake"][part], ids)
        ta.update(d["text"][part], d["audio"][part], ids)
        sim.update(d["audio"][part], ids)
        accuracy.update(d["fake"][part], (d["real"][part] > 0).float(), ids)
    metrics = {"fd": fd, "folded": folded, "is": inception, "kl": kl, "ta": ta, "ra": ra, "sim": sim, "acc": accuracy,
               "kad": kad, "fd_inf": fd_inf, "mauve": mauve, "coverage": coverage, "kl_kept": kept,
               "hashed_folded": hashed[0], "hashed": hashed[1]}
    found = {name: metric.compute() for name, metric in metrics.items()}
    found["fd_inf"] |= {f"share {share}": distance for share, distance in
                        zip(found["fd_inf"].pop("shares"), found["fd_inf"].pop("distances"), strict=True)}
    return {**found, "retrieval": ta.retrieval_max(d["train"])}


def too_few_then_enough(rank: int, world: int) -> float:
    """A figure that could not be taken does not spoil the next one, with the reference kept."""
    d, metric = data(), FrechetDistance(reset_real_features=False)
    mine = list(range(rank, N, world))
    metric.update(d["real"][mine], [f"clip{i}" for i in mine], real=True)
    if rank == 0:
        metric.update(d["fake"][:1], ["clip0"], real=False)
    with pytest.raises(TooFewClips, match="found 23 and 1"):
        metric.compute()
    metric.reset()
    metric.update(d["fake"][mine], [f"clip{i}" for i in mine], real=False)
    found = metric.compute()
    assert (found["n"], found["n_real"]) == (N, N)
    return found["fd"]


def worker(rank: int, world: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    # As DistributedSampler assigns: rank r gets every world-th clip, and the last round is padded with the first clips.
    rounds = -(-N // world)
    padded = [i % N for i in range(rank, rounds * world, world)]
    one_rank_idle = [i for i in range(N) if world > 1 and i % (world - 1) == rank] if rank < world - 1 else []
    found = [run([mine[start : start + 5] for start in range(0, len(mine), 5)]) for mine in (padded, one_rank_idle)]
    torch.save((found, too_few_then_enough(rank, world)), Path(folder) / f"result{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    alone = run([list(range(N))])
    assert alone["hashed"] == pytest.approx(alone["hashed_folded"], rel=1e-12)
    assert alone["kl_kept"] == alone["kl"]
    expected = {match.clip_id: match for match in alone["sim"].pop("matches")}
    forked.spawn(worker, (world, str(tmp_path)), world)
    for rank in range(world):
        results, after_too_few = torch.load(tmp_path / f"result{rank}.pt", weights_only=False)
        assert after_too_few == pytest.approx(alone["fd"]["fd"], rel=1e-9)
        for found in results:
            matches = found["sim"].pop("matches")
            assert {match.clip_id: match.nearest_id for match in matches} == {
                name: match.nearest_id for name, match in expected.items()
            }
            assert found.keys() == alone.keys()
            for name, values in found.items():
                assert values == pytest.approx(alone[name], rel=1e-9), name
