"""Kernel audio distance: how far apart two sets of embeddings are, without a Gaussian and without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.paired_rows import PairedRowsMetric

# Published figures carry this factor.
SCALE = 100.0
# Rows that the median distance is taken over; more of them change it by less than a figure shows.
MEDIAN_ROWS = 4096


def median_distance(rows_RD: Tensor, limit: int = MEDIAN_ROWS) -> float:
    """Median Euclidean distance between two rows; the lower one of an even number.

    Args:
        rows_RD: Rows, `[R, D]`.
        limit: Of more rows than this, so many are taken, evenly spaced.

    Returns:
        The median.
    """
    if len(rows_RD) > limit:
        rows_RD = rows_RD[torch.linspace(0, len(rows_RD) - 1, limit, device=rows_RD.device).round().long()]
    return float(torch.pdist(rows_RD).median())


def kernel_sum(a_RD: Tensor, b_RD: Tensor, bandwidth: float, block: int = 2048) -> float:
    """Sum of `exp(-|a_i - b_j|^2 / (2 bandwidth^2))` over all pairs, or over those with i != j where b is a itself.

    Args:
        a_RD: Rows, `[R1, D]`.
        b_RD: Rows, `[R2, D]`.
        bandwidth: Of the kernel.
        block: Rows taken at a time; memory grows with its square.

    Returns:
        The sum.
    """
    total = 0.0
    for i in range(0, len(a_RD), block):
        for j in range(0, len(b_RD), block):
            if a_RD is b_RD and j < i:
                continue
            a, b = a_RD[i : i + block], b_RD[j : j + block]
            squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * (a @ b.T)
            kernel = torch.exp(squared.clamp_min_(0) / (-2 * bandwidth**2))
            if a_RD is b_RD and i == j:
                kernel.fill_diagonal_(0)
            # The blocks below the diagonal mirror those above it.
            total += float(kernel.sum()) * (2 if a_RD is b_RD and i != j else 1)
    return total


class KernelDistance(PairedRowsMetric):
    """KAD: unbiased squared maximum mean discrepancy with a Gaussian kernel, times 100 (arXiv 2502.15602).

    The bandwidth is the median distance within the reference, so that it does not follow what is judged. Being unbiased
    it can be slightly negative, and its expectation does not depend on the number of clips.
    """

    def compute(self) -> dict[str, float | int]:
        """The distance.

        Returns:
            `kad`; `bandwidth`; `n` and `n_real` clips; `rows` and `rows_real` feature rows.

        Raises:
            MusiccmError: A reference most of whose rows are the same.
        """
        real, fake = self.row_sets()
        # Distances do not change, and large means no longer cancel in them.
        centre = real.rows.mean(dim=0)
        x, y = real.rows - centre, fake.rows - centre
        bandwidth = median_distance(x)
        if not bandwidth:
            raise MusiccmError("kernel audio distance: expected reference clips that differ, found most of them equal")
        m, n = len(x), len(y)
        within = kernel_sum(x, x, bandwidth) / (m * (m - 1)) + kernel_sum(y, y, bandwidth) / (n * (n - 1))
        value = SCALE * (within - 2 * kernel_sum(x, y, bandwidth) / (m * n))
        counts = {"n": len(fake.clips), "n_real": len(real.clips), "rows": n, "rows_real": m}
        return {"kad": value, "bandwidth": bandwidth, **counts}
