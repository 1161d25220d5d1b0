"""The Frechet distance that endless clips would give, from smaller and smaller draws of those there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.gaussian import frechet_distance_of_rows
from musiccm.metrics.paired_rows import PairedRowsMetric

# The bias falls as 1/n only once covariances have full rank, with room to spare.
ROWS_A_DIMENSION = 2


class FrechetInfinity(PairedRowsMetric):
    """Frechet distance extrapolated to infinitely many clips (Chong and Forsyth, arXiv 1911.07023).

    The same share of both sets is drawn, without replacement, for shares from 1 down; a line in 1/share is fitted and
    read at 0. Both sets shrink, for a reference of a few hundred clips biases the distance as the generated ones do.
    (Drawing with replacement, as fadtk does, leaves the bias in.) The draws are seeded and made over sorted ids; clips
    of the same id, which answer the same caption, are drawn together, for the bias of paired sets is a smaller one.
    """

    def __init__(self, points: int = 15, smallest: float = 0.25, seed: int = 0, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            points: Draws, at shares evenly spaced in 1/share.
            smallest: The smallest share; raised where it would leave fewer than two rows a dimension.
            seed: Of the draws.
            **kwargs: Passed to `ClipMetric`.

        Raises:
            MusiccmError: Fewer than 2 points, or a share outside (0, 1).
        """
        super().__init__(**kwargs)
        if points < 2 or not 0 < smallest < 1:
            raise MusiccmError(
                f"FD-infinity: expected 2 points or more and a share between 0 and 1, found {points} and {smallest}"
            )
        self.points, self.smallest, self.seed = points, smallest, seed

    def compute(self) -> dict[str, Any]:
        """The extrapolated distance; a line that does not hold is warned about.

        Returns:
            `fd_inf`; `shares` and their `distances`; `n` and `n_real` clips; `rows` and `rows_real` feature rows.

        Raises:
            TooFewClips: Fewer than 8 clips in a set.
        """
        sets = self.row_sets()
        real, fake = sets
        n_real, n, rows_real, rows = len(real.clips), len(fake.clips), len(real.rows), len(fake.rows)
        if min(n, n_real) < 8:
            raise TooFewClips(f"FD-infinity: expected at least 8 clips in each set, found {n_real} and {n}")
        width = real.clips[0].shape[1]
        needed = ROWS_A_DIMENSION * width / min(rows, rows_real)
        if needed > 0.5:
            self.caution(
                "FD-infinity: %d reference and %d generated rows are too few for %d dimensions; the bias is no line in "
                "1/n there, and what is left of it unknown", rows_real, rows, width,
            )
        smallest = max(self.smallest, min(needed, 0.5), 4 / min(n, n_real))
        shares = 1 / np.linspace(1.0, 1 / smallest, self.points)
        paired = set(real.ids) & set(fake.ids)
        parts = [sorted(paired), *[[clip_id for clip_id in found.ids if clip_id not in paired] for found in sets]]
        random = np.random.RandomState(self.seed)
        distances, inverse = [], []
        for share in shares:
            common, *alone = [
                [ids[i] for i in random.permutation(len(ids))[: round(share * len(ids))]] for ids in parts
            ]
            drawn = [[*common, *ids] for ids in alone]
            distances.append(frechet_distance_of_rows(real.of(drawn[0]).rows, fake.of(drawn[1]).rows))
            inverse.append((n_real / len(drawn[0]) + n / len(drawn[1])) / 2)
        slope, at_infinity = np.polyfit(inverse, distances, 1)
        return {"fd_inf": float(at_infinity), "shares": shares.tolist(), "distances": distances,
                **self.counted(real, fake)}
