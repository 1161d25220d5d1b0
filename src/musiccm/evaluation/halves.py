"""Distances and shares of neighbours of all clips and of both halves of many splits, for intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.evaluation.side_by_side import side_by_side
from musiccm.metrics.clips import TooFewClips, rows_each
from musiccm.metrics.coverage import NEIGHBOURS, kth_nearest, within_balls
from musiccm.metrics.gaussian import (
    fewer_than_dimensions,
    frechet_distance,
    frechet_distance_of_rows,
    moments_of,
    root_of,
)
from musiccm.metrics.jackknife import Halved, splits
from musiccm.metrics.kernel import SCALE, chosen_mean, clip_kernel, median_distance

#: The fewest halves that are drawn, and the sizes up to which all are: beyond, a draw costs seconds.
FEWEST_DRAWS, WIDTH, ROWS = 24, 256, 4096
#: More rows than this have no intervals of coverage: their distances would not fit into memory.
MOST_NEIGHBOUR_ROWS = 8192
#: Halves with fewer rows a dimension have a bias that does not fall as 1/n.
ROWS_A_DIMENSION = 2


def draws_for(rows: int, width: int, most: int) -> int:
    """Halves to draw: as many as were asked for, fewer where one takes long.

    Args:
        rows: Rows of a set.
        width: Numbers in a row.
        most: What was asked for.

    Returns:
        An even number.
    """
    share = min(1.0, (WIDTH / width) ** 1.5, ROWS / rows)
    return 2 * (max(min(most, FEWEST_DRAWS), round(most * share)) // 2)


class ClipSet:
    """Rows of clips in the order of their ids.

    Args:
        name: Of the set, for messages.
        ids: Clip ids.
        rows_RD: Rows of all clips, clip after clip, `[R, D]`.
        counts: Rows of each clip.

    Raises:
        MusiccmError: An id twice, counts that do not add up, or rows that are not finite.
    """

    def __init__(self, name: str, ids: Sequence[str], rows_RD: Tensor, counts: Sequence[int]) -> None:
        if len(ids) < 2:
            raise TooFewClips(f"{name}: expected at least 2 clips, found {len(ids)}")
        counts = rows_each(name, rows_RD, ids, counts)
        if len(set(ids)) != len(ids):
            raise MusiccmError(f"{name}: expected each clip id once, found {len(ids) - len(set(ids))} repeats")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        parts = rows_RD.detach().cpu().double().split(counts)
        self.ids = tuple(ids[i] for i in order)
        self.rows_RD = torch.cat([parts[i] for i in order])
        self.counts = np.array([counts[i] for i in order], dtype=int)
        self.first = np.cumsum(self.counts) - self.counts
        self.clip_R = torch.arange(len(order)).repeat_interleave(torch.tensor(self.counts))

    def places(self, clips: np.ndarray) -> Tensor:
        """Which rows the clips of some places have."""
        if len(self.rows_RD) == len(self.ids):
            return torch.from_numpy(clips)
        return torch.from_numpy(np.concatenate([np.arange(self.first[i], self.first[i] + self.counts[i])
                                                for i in clips]))

    def of(self, clips: np.ndarray) -> Tensor:
        """Their rows."""
        return self.rows_RD[self.places(clips)]


class Split(NamedTuple):
    """Two halves of the clips.

    Args:
        real: Places of either half of the reference, and of all sets that have its ids.
        others: The same of real clips of other ids.
    """

    real: tuple[np.ndarray, np.ndarray]
    others: tuple[np.ndarray, np.ndarray]


class Halves:
    """A reference with its splits; gives the figures of any set of clips over them.

    Args:
        real: The reference.
        others: Clips in a set of other ids than the reference's; 0 where there is none.
        draws: Halves, two a split.
        seed: Of the splits, which are made over sorted ids.
    """

    def __init__(self, real: ClipSet, others: int, draws: int, seed: int) -> None:
        self.real, self.width = real, real.rows_RD.shape[1]
        self.centre = real.rows_RD.mean(dim=0)  # distances do not change, and large means no longer cancel in them
        self.x = real.rows_RD - self.centre
        self.splits = [Split(*found) for found in splits([len(real.ids), others], draws // 2, seed)]
        self._moments: dict[int, tuple] = {}
        self._kernel: tuple[float, Tensor] | None = None
        self._distances: Tensor | None = None
        self._radii: dict[bytes, Tensor] = {}

    def _chosen(self, found: ClipSet, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return split.real if found.ids == self.real.ids else split.others

    def too_few(self, found: ClipSet) -> str | None:
        """Why the halves have too few clips for a bias that falls as 1/n; rows of one clip are not independent.

        Args:
            found: The set.

        Returns:
            A sentence; None where there are enough.
        """
        clips, wanted = min(len(self.real.ids), len(found.ids)), 2 * ROWS_A_DIMENSION * self.width
        return None if clips >= wanted else (f"{clips:,} clips are too few for an interval in {self.width:,} "
                                             f"dimensions, whose bias is known from {wanted:,} on")

    def frechet(self, found: ClipSet) -> Halved:
        """The Frechet distance.

        Args:
            found: The set.

        Returns:
            Of all clips and of halves.
        """
        y = found.rows_RD - self.centre
        few = fewer_than_dimensions(len(self.x) // 2, len(y) // 2, self.width)
        inner = self.x @ y.T if few else None

        def of_half(place: int) -> float:
            split, side = self.splits[place // 2], place % 2
            mine, theirs = self.real.places(split.real[side]), found.places(self._chosen(found, split)[side])
            if inner is not None:
                return frechet_distance_of_rows(self.x[mine], y[theirs], inner_RR=_part(inner, mine, theirs))
            moments, root = self._real_moments(place, mine)
            return frechet_distance(moments, moments_of(y[theirs]), root_a_DD=root)

        parts = np.array(side_by_side(of_half, 2 * len(self.splits))).reshape(-1, 2)
        return Halved(frechet_distance_of_rows(self.x, y), parts)

    def kernel(self, found: ClipSet) -> Halved:
        """The kernel distance, by the bandwidth of the whole reference.

        Args:
            found: The set.

        Returns:
            Of all clips and of halves.

        Raises:
            MusiccmError: A reference most of whose rows are the same.
        """
        if self._kernel is None:
            bandwidth = median_distance(self.x)
            if not bandwidth:
                raise MusiccmError("kernel audio distance: expected reference clips that differ, found most of them "
                                   "equal")
            self._kernel = bandwidth, clip_kernel(self.x, self.x, self.real.clip_R, self.real.clip_R, bandwidth)
        bandwidth, within_real = self._kernel
        y, same = found.rows_RD - self.centre, found.ids == self.real.ids
        within = clip_kernel(y, y, found.clip_R, found.clip_R, bandwidth)
        between = clip_kernel(self.x, y, self.real.clip_R, found.clip_R, bandwidth)
        mine = self._indicators(len(self.real.ids), [split.real for split in self.splits])
        theirs = self._indicators(len(found.ids), [self._chosen(found, split) for split in self.splits])
        of_x, of_y = (torch.from_numpy(part.counts).double() for part in (self.real, found))
        values = SCALE * (chosen_mean(within_real, of_x, of_x, mine, mine, True)
                          + chosen_mean(within, of_y, of_y, theirs, theirs, True)
                          - 2 * chosen_mean(between, of_x, of_y, mine, theirs, same))
        return Halved(float(values[0]), values[1:].reshape(-1, 2).numpy())

    def neighbours(self, found: ClipSet, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Shares of nearest neighbours of the halves, as `metrics.coverage` takes those of all clips.

        Args:
            found: The set.
            names: Which of them.

        Returns:
            Of each, the shares of the halves, `[P, 2]`; nothing where there are too many rows, or too few clips.
        """
        y, k = found.rows_RD - self.centre, NEIGHBOURS
        paired = found.ids == self.real.ids
        fewest = min(len(self.real.ids), len(found.ids)) // (4 if paired else 2)
        if max(len(self.x), len(y)) > MOST_NEIGHBOUR_ROWS or fewest <= k:
            return {}
        within, between = _apart(y, found.clip_R), torch.cdist(self.x, y).float()
        self._apart_real()  # once, and not by whichever thread comes first

        def of_half(place: int) -> list[float]:
            split, side = self.splits[place // 2], place % 2
            half = [(split.real[side], self._chosen(found, split)[side])]
            if paired:  # quarters of other ids, both ways
                one, other = np.array_split(split.real[side], 2)
                half = [(one, other), (other, one)]
            parts = []
            for mine, theirs in half:
                i, j = self.real.places(mine), found.places(theirs)
                radius = kth_nearest(_part(within, j, j), k)
                parts.append(within_balls([_part(between, i, j)], self._real_radii(mine, i), radius, k, names))
            return [float(np.mean([part[name] for part in parts])) for name in names]

        columns = np.array(side_by_side(of_half, 2 * len(self.splits))).T
        return {name: column.reshape(-1, 2) for name, column in zip(names, columns, strict=True)}

    def _real_moments(self, number: int, places: Tensor) -> tuple:
        if number not in self._moments:
            moments = moments_of(self.x[places])
            self._moments[number] = moments, root_of(moments.covariance)
        return self._moments[number]

    def _real_radii(self, clips: np.ndarray, places: Tensor) -> Tensor:
        """Of a part of the reference: the same for all sets."""
        if (key := clips.tobytes()) not in self._radii:
            self._radii[key] = kth_nearest(_part(self._apart_real(), places, places), NEIGHBOURS)
        return self._radii[key]

    def _apart_real(self) -> Tensor:
        if self._distances is None:
            self._distances = _apart(self.x, self.real.clip_R)
        return self._distances

    @staticmethod
    def _indicators(clips: int, halves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        """All clips, then each half: a column of ones and zeros each, `[N, 1 + 2 P]`."""
        columns = torch.zeros(clips, 1 + 2 * len(halves), dtype=torch.float64)
        columns[:, 0] = 1
        for number, pair in enumerate(halves):
            for side, half in enumerate(pair):
                columns[torch.from_numpy(half), 1 + 2 * number + side] = 1
        return columns


def _part(matrix: Tensor, lines: Tensor, columns: Tensor) -> Tensor:
    return matrix.index_select(0, lines).index_select(1, columns)


def _apart(rows_RD: Tensor, clip_R: Tensor) -> Tensor:
    """Distances within a set; infinite between rows of one clip."""
    return torch.cdist(rows_RD, rows_RD).masked_fill_(clip_R[:, None] == clip_R[None], torch.inf).float()
