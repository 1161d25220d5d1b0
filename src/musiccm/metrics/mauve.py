"""MAUVE: how far two sets of embeddings overlap, by histograms over common clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans, vq
from scipy.integrate import trapezoid
from scipy.special import rel_entr
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.paired_rows import PairedRowsMetric

#: Of the paper (arXiv 2102.01454, section 4): c in `exp(-c KL)`; it sets where the scale is fine.
SCALING = 5.0
#: Share of the variance that is kept before clustering.
EXPLAINED = 0.9
#: Mixtures of the two histograms on the frontier; the ends are added.
POINTS = 25
# A mixture of weight 0 or 1 lacks what only the other set has.
_MARGIN = 1e-6


def divergence_frontier(
    p_K: np.ndarray, q_K: np.ndarray, scaling: float = SCALING, points: int = POINTS
) -> np.ndarray:
    """The curve `(exp(-c KL(q || r)), exp(-c KL(p || r)))` over mixtures `r = w p + (1 - w) q` (paper, equation 1).

    Args:
        p_K: Probabilities of one set, `[K]`.
        q_K: Of the other.
        scaling: c.
        points: Mixtures.

    Returns:
        `[points + 2, 2]`, from (0, 1) to (1, 0).
    """
    curve = [(0.0, 1.0)]
    for weight in np.linspace(_MARGIN, 1 - _MARGIN, points):
        mixed = weight * p_K + (1 - weight) * q_K
        curve.append((np.exp(-scaling * rel_entr(q_K, mixed).sum()), np.exp(-scaling * rel_entr(p_K, mixed).sum())))
    return np.array([*curve, (1.0, 0.0)])


def frontier_area(curve_P2: np.ndarray) -> float:
    """The area under a frontier, by trapezia: the mean of both readings, over x and over y.

    Args:
        curve_P2: Points of the curve.

    Returns:
        An area in [0, 1].
    """
    areas = []
    for x, y in (curve_P2.T, curve_P2.T[::-1]):
        order = np.argsort(x, kind="stable")
        areas.append(float(trapezoid(y[order], x[order])))
    return (areas[0] + areas[1]) / 2


def reduced(rows_RD: Tensor, explained: float = EXPLAINED) -> Tensor:
    """Rows of unit length in their principal components, as many as explain a share of the variance.

    Args:
        rows_RD: Rows, `[R, D]`, float64.
        explained: The share.

    Returns:
        `[R, E]`.
    """
    unit = rows_RD / rows_RD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    centred = unit - unit.mean(dim=0)
    if len(centred) > centred.shape[1]:  # then this is cheaper, and as good for the largest components
        values, axes_DE = torch.linalg.eigh(centred.T @ centred)
        variance, axes_ED = values.flip(0).clamp_min(0), axes_DE.T.flip(0)
    else:
        _, singular, axes_ED = torch.linalg.svd(centred, full_matrices=False)
        variance = singular.square()
    share = variance.cumsum(0) / variance.sum()
    kept = int((share < explained).sum()) + 1
    return centred @ axes_ED[:kept].T


def cluster_labels(rows_RE: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The k-means cluster of each row; the first centres are rows drawn by the seed.

    Args:
        rows_RE: Rows.
        clusters: How many; one that loses all its rows is dropped.
        seed: Of the draw.

    Returns:
        Labels, `[R]`.
    """
    drawn = np.random.RandomState(seed).permutation(len(rows_RE))[:clusters]
    centres, _ = kmeans(rows_RE, rows_RE[drawn])
    return vq(rows_RE, centres)[0]


class Mauve(PairedRowsMetric):
    """MAUVE of real and generated embeddings (Pillutla et al., arXiv 2102.01454): 1 is one distribution, 0 two apart.

    Rows are brought to unit length and to the principal components that explain 90 % of their variance, both sets
    together, and clustered by k-means into a tenth as many clusters as the smaller set has rows, 2 at least. The score
    is the area under the frontier of the two histograms. It is the mean over several clusterings from different seeds;
    the draws are seeded and made over sorted ids.

    Two samples of one distribution come out below 1: a histogram of k clusters and n rows is that uneven, and k/n stays
    when n grows. So compare scores of equal n alone, with that of other real clips beside them.
    """

    higher_is_better = True

    def __init__(
        self, clusters: int | None = None, scaling: float = SCALING, clusterings: int = 5, seed: int = 0, **kwargs: Any
    ) -> None:
        """Start without rows.

        Args:
            clusters: How many; a tenth of the rows of the smaller set if None.
            scaling: c of the paper.
            clusterings: How many are averaged.
            seed: Of the first one.
            **kwargs: Passed to `ClipMetric`.

        Raises:
            MusiccmError: Fewer than 2 clusters, no clustering, or a scaling that is not positive.
        """
        super().__init__(**kwargs)
        if (clusters is not None and clusters < 2) or clusterings < 1 or not scaling > 0:
            raise MusiccmError(f"MAUVE: expected at least 2 clusters, 1 clustering and a scaling above 0, found "
                               f"{clusters}, {clusterings} and {scaling}")
        self.clusters, self.scaling, self.clusterings, self.seed = clusters, scaling, clusterings, seed

    def compute(self) -> dict[str, Any]:
        """The score.

        Returns:
            `mauve`; `std` over the clusterings; `clusters`; `n` and `n_real` clips; `rows` and `rows_real` feature
            rows.

        Raises:
            TooFewClips: Fewer than two in a set.
        """
        real, fake = self.row_sets()
        n_real, n = len(real.rows), len(fake.rows)
        clusters = self.clusters or max(2, round(min(n_real, n) / 10))
        rows = reduced(torch.cat([real.rows, fake.rows])).cpu().numpy()
        scores = []
        for seed in range(self.seed, self.seed + self.clusterings):
            labels = cluster_labels(rows, min(clusters, len(rows)), seed)
            p, q = (np.bincount(part, minlength=labels.max() + 1) / len(part)
                    for part in (labels[:n_real], labels[n_real:]))
            scores.append(frontier_area(divergence_frontier(p, q, self.scaling)))
        return {"mauve": float(np.mean(scores)), "std": float(np.std(scores)), "clusters": clusters,
                **self.counted(real, fake)}
