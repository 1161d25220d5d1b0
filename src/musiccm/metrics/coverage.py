"""Coverage, density, precision and recall: is what is generated as varied as the real clips, and as close to them?"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.paired_rows import PairedRowsMetric, RowSet

# Neighbours that the balls reach to, as published.
NEIGHBOURS = 5
#: What there is.
SHARES = ("coverage", "density", "precision", "recall")
_BLOCK = 2048


def radii(rows_RD: Tensor, clip_R: Tensor, k: int, block: int = _BLOCK) -> Tensor:
    """Distance of each row to the k-th nearest row of another clip.

    Args:
        rows_RD: Rows, `[R, D]`.
        clip_R: Number of the clip that each belongs to, `[R]`.
        k: Which neighbour.
        block: Rows taken at a time.

    Returns:
        `[R]`; infinite where there are fewer than k rows of other clips.
    """
    found = []
    for start in range(0, len(rows_RD), block):
        distance = torch.cdist(rows_RD[start : start + block], rows_RD)
        distance.masked_fill_(clip_R[start : start + block, None] == clip_R[None], torch.inf)
        found.append(kth_nearest(distance, k))
    return torch.cat(found)


def kth_nearest(distance_RR: Tensor, k: int) -> Tensor:
    """The k-th smallest distance of each line, `[R]`."""
    return distance_RR.topk(k, dim=1, largest=False).values[:, -1]


def expected_coverage(n_real: int, n: int, k: int = NEIGHBOURS) -> float:
    """Coverage of a perfect model (Naeem et al. 2020, arXiv 2002.09797, section 3.2).

    Args:
        n_real: Real rows.
        n: Generated rows, independent of them.
        k: Neighbours.

    Returns:
        The expectation, whatever the distribution.
    """
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n_real - i) / (n + n_real - i)
    return 1 - missed


def within_balls(
    distances: Iterable[Tensor], real_radius_R: Tensor, fake_radius_S: Tensor, k: int = NEIGHBOURS,
    names: Collection[str] = SHARES,
) -> dict[str, float]:
    """Shares of two sets of rows.

    Args:
        distances: Distances of real rows from the generated ones, in blocks of lines, `[block, S]` each.
        real_radius_R: Of the real rows' balls.
        fake_radius_S: Of the generated rows'.
        k: Neighbours that the balls reach to.
        names: Which of `SHARES`.

    Returns:
        They, and `expected`, a perfect model's coverage.
    """
    covered, recalled, start = [], [], 0
    inside = torch.zeros(len(fake_radius_S), dtype=torch.long, device=fake_radius_S.device)
    for distance in distances:
        radius = real_radius_R[start : start + len(distance)]
        covered.append(distance.amin(dim=1) <= radius)
        if "recall" in names:
            recalled.append((distance <= fake_radius_S[None]).any(dim=1))
        if "density" in names or "precision" in names:
            inside += (distance <= radius[:, None]).sum(dim=0)
        start += len(distance)
    found = {
        "coverage": lambda: torch.cat(covered).double().mean(),
        "density": lambda: inside.double().mean() / k,
        "precision": lambda: (inside > 0).double().mean(),
        "recall": lambda: torch.cat(recalled).double().mean(),
    }
    return {**{name: float(value()) for name, value in found.items() if name in names},
            "expected": expected_coverage(len(real_radius_R), len(fake_radius_S), k)}


class Coverage(PairedRowsMetric):
    """Shares of rows within each other's k-nearest-neighbour balls.

    `coverage` and `density` of Naeem et al. 2020 (arXiv 2002.09797), `precision` and `recall` of Kynkaanniemi et al.
    2019 (arXiv 1904.06991), on the rows as they are. Sets that answer the same captions lie closer together than
    independent ones, so that a model would cover more than it can: real clips are then compared with generated ones of
    other ids, half with half both ways, and the two results averaged. A perfect model covers `expected`.
    """

    higher_is_better = True

    def __init__(self, k: int = NEIGHBOURS, seed: int = 0, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            k: Neighbours that the balls reach to.
            seed: Of the halves, which are made over sorted ids.
            **kwargs: Passed to `ClipMetric`.

        Raises:
            MusiccmError: k below 1.
        """
        super().__init__(**kwargs)
        if k < 1:
            raise MusiccmError(f"coverage: expected at least 1 neighbour, found {k}")
        self.k, self.seed = k, seed

    def compute(self) -> dict[str, float | int]:
        """The four shares.

        Returns:
            `coverage`, `density`, `precision`, `recall`; `expected`, a perfect model's coverage; `n` and `n_real`
            clips; `rows` and `rows_real` feature rows; `k`.

        Raises:
            TooFewClips: A set, or a half of one, with no more than k clips.
        """
        real, fake = self.row_sets()
        both = self._independent(real, fake)
        fewest = min(len(ids) for pair in both for ids in pair)
        if fewest <= self.k:
            raise TooFewClips(f"coverage: expected more than {self.k} clips in each set, and in each half of sets that "
                              f"share clip ids, found {len(real.clips)} and {len(fake.clips)}")
        found = [self._shares(real.of(a), fake.of(b)) for a, b in both]
        shares = {name: sum(part[name] for part in found) / len(found) for name in found[0]}
        return {**shares, **self.counted(real, fake), "k": self.k}

    def _independent(self, real: RowSet, fake: RowSet) -> list[tuple[list[str], list[str]]]:
        """Pairs of real and generated ids without one in common."""
        shared = sorted(set(real.ids) & set(fake.ids))
        if not shared:
            return [(list(real.ids), list(fake.ids))]
        order = np.random.RandomState(self.seed).permutation(len(shared))
        halves = [[shared[i] for i in part] for part in np.array_split(order, 2)]
        alone = [[clip_id for clip_id in found.ids if clip_id not in set(shared)] for found in (real, fake)]
        return [([*a, *alone[0]], [*b, *alone[1]]) for a, b in (halves, halves[::-1])]

    def _shares(self, real: RowSet, fake: RowSet) -> dict[str, float]:
        known: dict[str, int] = {}
        x, of_x, y, of_y = real.rows, real.numbers(known), fake.rows, fake.numbers(known)
        real_radius, fake_radius = radii(x, of_x, self.k), radii(y, of_y, self.k)
        blocks = (torch.cdist(x[start : start + _BLOCK], y) for start in range(0, len(x), _BLOCK))
        return within_balls(blocks, real_radius, fake_radius, self.k)
