"""The training clips nearest to each query clip: exact, block by block, alone or with the work split over ranks.

Cosines of all pairs are taken in float32, whose rounding is bounded: a dot product of two unit vectors of width D errs
by less than D u, u = 2^-24, in any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1). So the clips within twice that bound of the best hold the best; these few are scored again in float64, and a
threshold is compared with that. Queries with too many near-equals to keep are searched again in float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from musiccm.metrics.text_audio import unit_rows
from musiccm.similarity.gallery import Gallery

# Largest slice of the table of cosines that is held at once: this many training rows times this many query windows.
BLOCK_ROWS, BLOCK_WINDOWS = 8192, 2048
# Clips that the first pass keeps beyond those asked for.
_SPARE = 15


class Neighbours(NamedTuple):
    """What each query clip is closest to, nearest first; where there are fewer than k clips, cosine is -inf, clip -1.

    Args:
        cosine_QK: Highest cosine over all pairs of their windows, float64, `[Q, k]`.
        clip_QK: Number of the training clip.
        row_QK: Row of the gallery: the training clip's window of the best pair.
        window_QK: Number of the query clip's own window of that pair.
    """

    cosine_QK: Tensor
    clip_QK: Tensor
    row_QK: Tensor
    window_QK: Tensor


class Queries:
    """Clips to search for, each with one window or several.

    Args:
        rows_WD: Embeddings of all windows, clip after clip, of any length.
        counts: Windows of each clip, at least one.
        exclude: Number of the training clip that each query must not find (itself), -1 for none.
        device: Where to search.
    """

    def __init__(
        self, rows_WD: Tensor, counts: list[int], exclude: list[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.rows = unit_rows(rows_WD.detach().to(device or rows_WD.device))
        self.counts = counts
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.exclude = exclude if exclude is not None else [-1] * len(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def windows(self, query: int) -> Tensor:
        """Unit rows of one clip, float64."""
        return self.rows[self.first[query] : self.first[query + 1]]

    def subset(self, queries: list[int]) -> Queries:
        """Some of the clips."""
        rows = torch.cat([self.windows(query) for query in queries])
        return Queries(rows, [self.counts[q] for q in queries], [self.exclude[q] for q in queries])


def tolerance(width: int, dtype: torch.dtype) -> float:
    """Bound of the error of a cosine in `dtype`: of the dot product, and of rounding and scaling both rows before."""
    return (width + 8) * torch.finfo(dtype).eps / 2


def nearest_clips(
    gallery: Gallery, queries: Queries, k: int = 1, split_over_ranks: bool = False, block_rows: int = BLOCK_ROWS
) -> Neighbours:
    """Search all rows of a gallery.

    Cosines are exact to float64's rounding, and so are the clips, except among more than 15 + k clips that are equal to
    within 1e-13: then any of them may be named.

    Args:
        gallery: The training clips.
        queries: The clips to search for; under `split_over_ranks` the same on every rank.
        k: Training clips to find for each.
        split_over_ranks: Search a share of the gallery on each rank and merge; every rank must call, and each gets
            the whole result.
        block_rows: Training rows compared at a time; a clip with more is not cut.

    Returns:
        The neighbours, on the queries' device.
    """
    gallery.refuse_width(queries.rows.shape[1])
    rank, world = (dist.get_rank(), dist.get_world_size()) if split_over_ranks and dist.is_initialized() else (0, 1)
    # Contiguous shares with about as many rows each.
    share = np.searchsorted(gallery.first_row, np.linspace(0, gallery.n_rows, world + 1)[rank : rank + 2])
    found = _search(gallery, queries, int(share[0]), int(share[1]), k, block_rows, torch.float32)
    return found if world == 1 else _merge([_gathered(tensor, world) for tensor in found], k)


def _search(
    gallery: Gallery, queries: Queries, begin: int, end: int, k: int, block_rows: int, dtype: torch.dtype
) -> Neighbours:
    """Search clips `begin` to `end`: candidates in `dtype`, their cosines in float64."""
    keep = k + _SPARE
    coarse, clips = _scan(gallery, queries, begin, end, keep, block_rows, dtype)
    # A clip below this cannot be among the k best.
    needed = coarse[:, k - 1 : k] - 2 * tolerance(gallery.width, dtype)
    # What is left out of a search for itself stands at -inf.
    found = rescore(gallery, queries, clips.masked_fill((coarse < needed) | ~torch.isfinite(coarse), -1), k)
    crowded = (coarse[:, -1:] >= needed) & torch.isfinite(coarse[:, -1:])
    if dtype != torch.float64 and bool(crowded.any()):
        again = crowded[:, 0].nonzero()[:, 0]
        found_again = _search(gallery, queries.subset(again.tolist()), begin, end, k, block_rows, torch.float64)
        for tensor, better in zip(found, found_again, strict=True):
            tensor[again] = better
    return found


def _scan(
    gallery: Gallery, queries: Queries, begin: int, end: int, keep: int, block_rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The `keep` best clips of each query by their highest cosine in `dtype`: values `[Q, keep]` and clip numbers."""
    device = queries.rows.device
    best = torch.full((len(queries), keep), -torch.inf, dtype=dtype, device=device)
    clips = torch.full((len(queries), keep), -1, dtype=torch.long, device=device)
    exclude = torch.tensor(queries.exclude, dtype=torch.long, device=device)
    chunks = [(a, b, queries.rows[queries.first[a] : queries.first[b]].to(dtype)) for a, b in _chunks(queries)]
    with _full_precision(device):
        for first, last in _blocks(gallery, begin, end, block_rows):
            rows = gallery.read(int(gallery.first_row[first]), int(gallery.first_row[last])).to(device)
            rows = rows.to(dtype) if gallery.unit else unit_rows(rows).to(dtype)
            windows = torch.from_numpy(np.diff(gallery.first_row[first : last + 1])).to(device)
            for a, b, query_rows in chunks:
                cosine_QC = _best_pairs(query_rows, queries.counts[a:b], rows, windows)
                _leave_out(cosine_QC, exclude[a:b] - first)
                _keep_best(best[a:b], clips[a:b], cosine_QC, first)
    return best, clips


def _blocks(gallery: Gallery, begin: int, end: int, block_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole clips with at most `block_rows` rows, or one clip."""
    while begin < end:
        limit = int(gallery.first_row[begin]) + block_rows
        last = int(np.searchsorted(gallery.first_row[: end + 1], limit, side="right")) - 1
        last = max(begin + 1, last)
        yield begin, last
        begin = last


def _chunks(queries: Queries) -> Iterator[tuple[int, int]]:
    begin = 0
    while begin < len(queries):
        last = int(np.searchsorted(queries.first, queries.first[begin] + BLOCK_WINDOWS, side="right")) - 1
        last = max(begin + 1, last)
        yield begin, last
        begin = last


def _best_pairs(query_rows: Tensor, counts: list[int], rows: Tensor, windows: Tensor) -> Tensor:
    """Highest cosine of each query clip with each training clip over all pairs of windows, `[Q, C]`."""
    if len(windows) == len(rows):
        cosine = query_rows @ rows.T
    else:
        cosine = _max_of_groups(rows @ query_rows.T, windows).T
    if len(counts) == len(query_rows):
        return cosine
    return _max_of_groups(cosine.contiguous(), torch.tensor(counts, device=cosine.device))


def _max_of_groups(table: Tensor, sizes: Tensor) -> Tensor:
    """Maximum over groups of neighbouring lines of a table."""
    group = torch.repeat_interleave(torch.arange(len(sizes), device=table.device), sizes)
    result = torch.full((len(sizes), table.shape[1]), -torch.inf, dtype=table.dtype, device=table.device)
    return result.scatter_reduce_(0, group[:, None].expand_as(table), table, "amax")


def _leave_out(cosine_QC: Tensor, exclude_Q: Tensor) -> None:
    inside = ((exclude_Q >= 0) & (exclude_Q < cosine_QC.shape[1])).nonzero()[:, 0]
    cosine_QC[inside, exclude_Q[inside]] = -torch.inf


def _keep_best(best: Tensor, clips: Tensor, cosine_QC: Tensor, first: int) -> None:
    """Merge a block's cosines into the running best, in place."""
    # Most queries gain nothing from most blocks, and finding the maximum is much cheaper than sorting.
    gains = (cosine_QC.amax(dim=1) > best[:, -1]).nonzero()[:, 0]
    if not len(gains):
        return
    value, where = cosine_QC[gains].topk(min(best.shape[1], cosine_QC.shape[1]), dim=1)
    value, where = torch.cat([best[gains], value], dim=1), torch.cat([clips[gains], where + first], dim=1)
    value, order = value.topk(best.shape[1], dim=1)
    best[gains], clips[gains] = value, where.gather(1, order)


def rescore(gallery: Gallery, queries: Queries, clips_QK: Tensor, k: int) -> Neighbours:
    """Take the cosines of candidates in float64, and the best k of them.

    Args:
        gallery: The training clips.
        queries: The query clips.
        clips_QK: Candidates of each query, `[Q, K]`, -1 for none.
        k: How many to keep.

    Returns:
        The neighbours; of equal ones the first clip of the gallery comes first.
    """
    device = queries.rows.device
    clips_QK = torch.nn.functional.pad(clips_QK, (0, max(0, k - clips_QK.shape[1])), value=-1).cpu()
    cosine = torch.full(clips_QK.shape, -torch.inf, dtype=torch.float64)
    row, window = torch.full_like(clips_QK, -1), torch.zeros_like(clips_QK)
    pairs = (clips_QK >= 0).nonzero()
    near = 2 * tolerance(gallery.width, torch.float32)
    held, rows32, rows64 = -1, torch.empty(0), torch.empty(0)
    # A few small products, one after the other: on the CPU, where the rows are.
    here = queries.rows.cpu()
    with _full_precision(here.device):
        # In the order of the gallery, so that each of its files is read once.
        for query, place in pairs[clips_QK[pairs[:, 0], pairs[:, 1]].argsort(stable=True)].tolist():
            clip = int(clips_QK[query, place])
            first, last = int(gallery.first_row[clip]), int(gallery.first_row[clip + 1])
            if clip != held:
                held, rows64 = clip, unit_rows(gallery.read(first, last))
                rows32 = rows64.float()
            windows = here[queries.first[query] : queries.first[query + 1]]
            table = rows32 @ windows.float().T
            at = (table >= table.max() - near).nonzero()
            # Row by row rather than by a matrix product, which may round equal rows differently.
            exact = (rows64[at[:, 0]] * windows[at[:, 1]]).sum(dim=1)
            best = int(exact.argmax())
            cosine[query, place] = exact[best]
            row[query, place], window[query, place] = first + at[best, 0], at[best, 1]
    found = Neighbours(cosine, clips_QK, row, window)
    return Neighbours(*[tensor.to(device) for tensor in _merge(found, k)])


def _merge(found: tuple[Tensor, ...] | list[Tensor], k: int) -> Neighbours:
    """The best k of each line: highest cosine first, then lowest clip number."""
    cosine, clip = found[0], found[1]
    by_clip = clip.argsort(dim=1, stable=True)
    order = by_clip.gather(1, cosine.gather(1, by_clip).argsort(dim=1, descending=True, stable=True))[:, :k]
    merged = Neighbours(*[tensor.gather(1, order) for tensor in found])
    return merged._replace(clip_QK=merged.clip_QK.masked_fill(~torch.isfinite(merged.cosine_QK), -1))


def _gathered(tensor: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Turn off autocast, TF32 and bfloat16 products, which the bound does not hold for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
