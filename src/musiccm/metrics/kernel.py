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


def kernel_mean(
    a_RD: Tensor, b_RD: Tensor, clip_a_R: Tensor, clip_b_R: Tensor, bandwidth: float, block: int = 2048
) -> float:
    """Mean of `exp(-|a_i - b_j|^2 / (2 bandwidth^2))` over the pairs of rows that belong to different clips.

    Args:
        a_RD: Rows, `[R1, D]`.
        b_RD: Rows, `[R2, D]`; the same tensor for pairs within one set.
        clip_a_R: Number of the clip that each row belongs to, `[R1]`.
        clip_b_R: The same of b, `[R2]`.
        bandwidth: Of the kernel.
        block: Rows taken at a time; memory grows with its square.

    Returns:
        The mean.
    """
    total, pairs = 0.0, 0
    for i in range(0, len(a_RD), block):
        for j in range(0, len(b_RD), block):
            if a_RD is b_RD and j < i:
                continue
            a, b = a_RD[i : i + block], b_RD[j : j + block]
            squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * (a @ b.T)
            kernel = torch.exp(squared.clamp_min_(0) / (-2 * bandwidth**2))
            same = clip_a_R[i : i + block, None] == clip_b_R[None, j : j + block]
            # The blocks below the diagonal mirror those above it.
            times = 2 if a_RD is b_RD and i != j else 1
            total += times * float(kernel.masked_fill_(same, 0).sum())
            pairs += times * int((~same).sum())
    return total / pairs


class KernelDistance(PairedRowsMetric):
    """KAD: unbiased squared maximum mean discrepancy with a Gaussian kernel, times 100 (arXiv 2502.15602).

    The bandwidth is the median distance within the reference, so that it does not follow what is compared. Being
    unbiased it can be slightly negative, and its expectation does not depend on the number of clips. Two rows of one
    clip are no independent draws, nor are a generated and a real clip of one id, which answer the same caption: such
    pairs are left out (Gretton et al. 2012, JMLR 13, lemma 6), or the distance of paired sets would come out too small.
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
        known: dict[str, int] = {}
        of_x, of_y = real.numbers(known), fake.numbers(known)
        within = kernel_mean(x, x, of_x, of_x, bandwidth) + kernel_mean(y, y, of_y, of_y, bandwidth)
        value = SCALE * (within - 2 * kernel_mean(x, y, of_x, of_y, bandwidth))
        return {"kad": value, "bandwidth": bandwidth, **self.counted(real, fake)}
