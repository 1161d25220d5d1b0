"""Nearest training clips against brute force in float64, in any blocking, with near-equals, and split over ranks."""

from __future__ import annotations

import os
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torch.distributed as dist

from musiccm.similarity import nearest
from musiccm.similarity.gallery import RowGallery
from musiccm.similarity.nearest import Queries, nearest_clips
from musiccm.similarity.sim_aa import SimAA

WIDTH = 16


def make(clips: int = 40, most: int = 5, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Windows of clips with different numbers of them; a small spread puts all rows close together."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (clips,), generator=generator).tolist()
    centre = torch.ones(WIDTH)
    return centre + spread * torch.randn(sum(counts), WIDTH, generator=generator), counts


def gallery_of(rows: torch.Tensor, counts: list[int]) -> RowGallery:
    return RowGallery(rows, [f"t{clip}" for clip, n in enumerate(counts) for _ in range(n)])


def brute_force(train, train_counts, audio, counts, k, exclude=None):
    """For each query: (cosine, clip, row, window) of its k nearest clips, by NumPy over every pair."""
    a, b = audio.double().numpy(), train.double().numpy()
    table = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    q0, t0 = np.concatenate([[0], np.cumsum(counts)]), np.concatenate([[0], np.cumsum(train_counts)])
    result = []
    for q in range(len(counts)):
        best = []
        for t in range(len(train_counts)):
            if exclude is not None and exclude[q] == t:
                continue
            part = table[q0[q] : q0[q + 1], t0[t] : t0[t + 1]]
            window, row = np.unravel_index(part.argmax(), part.shape)
            best.append((float(part.max()), t, int(t0[t] + row), int(window)))
        result.append(sorted(best, key=lambda found: (-found[0], found[1]))[:k])
    return result


def assert_equal(found, expected) -> None:
    for q, neighbours in enumerate(expected):
        for place, (cosine, clip, row, window) in enumerate(neighbours):
            assert float(found.cosine_QK[q, place]) == pytest.approx(cosine, abs=1e-13)
            assert (int(found.clip_QK[q, place]), int(found.row_QK[q, place]), int(found.window_QK[q, place])) == (
                clip, row, window)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("most", [1, 5])
def test_equals_brute_force(block: int, most: int, device: str) -> None:
    train, train_counts = make(most=most)
    audio, counts = make(clips=12, most=3, seed=1)
    queries = Queries(audio.to(device), counts)
    found = nearest_clips(gallery_of(train, train_counts), queries, 4, block_rows=block)
    assert_equal(found, brute_force(train, train_counts, audio, counts, 4))


def test_near_equals_that_float32_cannot_order() -> None:
    train, train_counts = make(clips=300, most=2, spread=2e-5)
    audio, counts = make(clips=6, most=2, spread=0.5, seed=1)
    expected = brute_force(train, train_counts, audio, counts, 3)
    in_float32 = np.float32([[found[0] for found in neighbours] for neighbours in expected])
    assert (np.diff(in_float32) == 0).any()
    assert_equal(nearest_clips(gallery_of(train, train_counts), Queries(audio, counts), 3, block_rows=64), expected)


def test_the_first_of_equal_clips_is_named_wherever_blocks_begin() -> None:
    train = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)).expand(12, -1)
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    for block in (1, 5, 100):
        found = nearest_clips(gallery_of(train, [1] * 12), Queries(query, [1]), 3, block_rows=block)
        assert found.clip_QK.tolist() == [[0, 1, 2]] and len(set(found.cosine_QK[0].tolist())) == 1


def test_a_query_does_not_find_itself() -> None:
    train, train_counts = make(clips=9)
    queries = Queries(train, train_counts, list(range(9)))
    found = nearest_clips(gallery_of(train, train_counts), queries, 8, block_rows=6)
    assert_equal(found, brute_force(train, train_counts, train, train_counts, 8, list(range(9))))
    alone = nearest_clips(gallery_of(train[:2], [2]), Queries(train[:2], [2], [0]), 1)
    assert int(alone.clip_QK[0, 0]) == -1 and float(alone.cosine_QK[0, 0]) == -torch.inf


def test_fewer_clips_than_asked_for() -> None:
    train, train_counts = make(clips=3)
    found = nearest_clips(gallery_of(train, train_counts), Queries(train[:1], [1]), 5)
    assert found.clip_QK.shape == (1, 5) and sorted(found.clip_QK[0].tolist()) == [-1, -1, 0, 1, 2]


def test_more_query_windows_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "BLOCK_WINDOWS", 4)
    train, train_counts = make()
    audio, counts = make(clips=12, most=6, seed=1)
    assert_equal(nearest_clips(gallery_of(train, train_counts), Queries(audio, counts), 2),
                 brute_force(train, train_counts, audio, counts, 2))


def test_windows_of_a_clip_need_not_lie_side_by_side() -> None:
    rows = torch.eye(4)
    gallery = RowGallery(rows, ["a", "b", "a", "b"], [0.0, 1.0, 2.0, 3.0])
    assert list(gallery.ids) == ["a", "b"] and [gallery.start_s(n) for n in range(4)] == [0.0, 2.0, 1.0, 3.0]
    found = nearest_clips(gallery, Queries(rows, [1] * 4))
    assert found.clip_QK[:, 0].tolist() == [0, 1, 0, 1]


def metric_results(shards: list[list[int]]) -> dict:
    train, train_counts = make()
    audio, _ = make(clips=11, most=1, seed=1)
    metric = SimAA(gallery_of(train, train_counts), thresholds=(0.5, 0.8))
    for part in shards:
        metric.update(audio[part], [f"g{n}" for n in part])
    return metric.compute()


def worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for world in range(rank + 1, 4):  # starting processes is what takes time: the same ones play every world
        dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
        torch.save(as_rank(rank, world), Path(folder) / f"{world}-{rank}.pt")
        dist.destroy_process_group()


def as_rank(rank: int, world: int) -> tuple:
    read = []
    train, train_counts = make()
    gallery = gallery_of(train, train_counts)
    gallery.read = lambda a, b, real=gallery.read: (read.append((a, b)), real(a, b))[1]
    audio, counts = make(clips=12, most=3, seed=1)
    found = nearest_clips(gallery, Queries(audio, counts), 3, split_over_ranks=True, block_rows=16)
    # As DistributedSampler assigns: the last round is padded with clip 0.
    mine = [*range(11), *([0] * (-11 % world))][rank::world]
    return tuple(found), max(b for _, b in read) - min(a for a, _ in read), metric_results([mine])


def test_ranks_share_the_work_and_agree(tmp_path: Path) -> None:
    train, train_counts = make()
    audio, counts = make(clips=12, most=3, seed=1)
    expected = brute_force(train, train_counts, audio, counts, 3)
    figures = metric_results([list(range(11))])
    forked.spawn(worker, (str(tmp_path),), 3)
    for world in (1, 2, 3):
        for rank in range(world):
            found, rows_read, result = torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=False)
            assert_equal(nearest.Neighbours(*found), expected)
            assert rows_read <= len(train) / world + 10  # whole clips of at most five rows, at both ends
            assert result == figures
