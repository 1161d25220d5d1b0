"""Frechet distance as a metric: streaming, exact under sharding, each clip counted once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.folding import Collected, FoldingMetric, Summary
from musiccm.metrics.gaussian import Method, Moments, frechet_distance, frechet_distance_of_rows, merge, moments_of

# Below this many rows a dimension the covariances are so rough that the bias dwarfs most differences of models.
ROWS_A_DIMENSION = 10


class FrechetDistance(FoldingMetric):
    """Frechet distance between the Gaussians of real and generated features (FID, arXiv 1706.08500, equation 6).

    The newest rows are kept with their clip ids, older ones as (n, mean, M2): memory does not grow with the clips but
    for their ids, the cheap route of few rows stays open, and a distributed sampler's repeats can be dropped.
    """

    higher_is_better = False

    def __init__(self, method: Method = "auto", buffer_rows: int | None = 4096, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            method: Route to the trace of the root, see `gaussian.frechet_distance`.
            buffer_rows: See `FoldingMetric`.
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(buffer_rows, torch.float64, **kwargs)
        self.method = method
        for side in ("real", "fake"):
            self.add_side(side, n=0, mean=1, m2=2)

    def update(
        self, features: Tensor, ids: Sequence[str], real: bool, counts: Sequence[int] | None = None
    ) -> None:
        """Add clips to one set.

        Args:
            features: Feature rows of all clips, clip after clip, `[R, D]`.
            ids: Clip ids, `B` of them.
            real: Whether they belong to the reference set.
            counts: Rows of each clip (patches, windows), `B` numbers that add up to R; None is one each.
        """
        self.add_clips("real" if real else "fake", "Frechet distance features", features, ids, counts)

    def fold(self, summary: Summary | None, rows: Tensor, ids: Sequence[str], counts: Sequence[int]) -> Summary:
        """Merge rows into (n, mean, M2).

        Args:
            summary: What there is; None at first.
            rows: Rows of the clips, `[R, D]`.
            ids: Their ids.
            counts: Rows of each.

        Returns:
            The new moments.
        """
        moments = moments_of(rows)
        if summary is not None:
            moments = merge(Moments(int(summary[0]), summary[1], summary[2]), moments)
        return torch.tensor(moments.n, dtype=torch.float64, device=rows.device), moments.mean, moments.m2

    def compute(self) -> dict[str, float | int]:
        """The distance and what it rests on; too few rows for their width are warned about.

        Returns:
            `fd`; `n` and `n_real` clips; `rows` and `rows_real` feature rows.

        Raises:
            MusiccmError: An empty set.
        """
        real, fake = self.collected("real"), self.collected("fake")
        if not real.n or not fake.n:
            raise MusiccmError(f"Frechet distance: expected clips in both sets, found {real.n} and {fake.n}")
        if real.summaries or fake.summaries:
            a, b = _moments(real), _moments(fake)
            rows, width = (a.n, b.n), len(a.mean)
            value = frechet_distance(a, b, self.method)
        else:
            rows, width = (len(real.rows), len(fake.rows)), real.rows.shape[1]
            value = frechet_distance_of_rows(real.rows, fake.rows, self.method)
        if min(rows) < ROWS_A_DIMENSION * width:
            self.caution(
                "Frechet distance: %d reference and %d generated rows for %d dimensions give a figure that is biased "
                "upwards; compare it only with figures of the same numbers", *rows, width,
            )
        return {"fd": value, "n": fake.n, "n_real": real.n, "rows": rows[1], "rows_real": rows[0]}


def _moments(found: Collected) -> Moments:
    parts = [Moments(int(n), mean, m2) for n, mean, m2 in found.summaries]
    if len(found.rows):
        parts.append(moments_of(found.rows))
    return reduce(merge, parts)
