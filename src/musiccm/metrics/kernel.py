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


def gaussian_kernel(a_RD: Tensor, b_RD: Tensor, bandwidth: float) -> Tensor:
    """`exp(-|a_i - b_j|^2 / (2 bandwidth^2))` of all pairs of rows, `[R1, R2]`."""
    squared = a_RD.square().sum(1)[:, None] + b_RD.square().sum(1)[None] - 2 * (a_RD @ b_RD.T)
    return torch.exp(squared.clamp_min_(0) / (-2 * bandwidth**2))


def kernel_mean(
    a_RD: Tensor, b_RD: Tensor, clip_a_R: Tensor, clip_b_R: Tensor, bandwidth: float, block: int = 2048
) -> float:
    """Mean of `gaussian_kernel` over the pairs of rows that belong to different clips.

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
            kernel = gaussian_kernel(a, b, bandwidth)
            same = clip_a_R[i : i + block, None] == clip_b_R[None, j : j + block]
            # The blocks below the diagonal mirror those above it.
            times = 2 if a_RD is b_RD and i != j else 1
            total += times * float(kernel.masked_fill_(same, 0).sum())
            pairs += times * int((~same).sum())
    return total / pairs


def clip_kernel(
    a_RD: Tensor, b_RD: Tensor, clip_a_R: Tensor, clip_b_R: Tensor, bandwidth: float, block: int = 2048
) -> Tensor:
    """Sums of `gaussian_kernel` over the rows of each pair of clips, from which `chosen_mean` takes any choice of them.

    Args:
        a_RD: Rows, `[R1, D]`.
        b_RD: Rows, `[R2, D]`.
        clip_a_R: Which clip each row belongs to, from 0, ascending, `[R1]`.
        clip_b_R: The same of b, `[R2]`.
        bandwidth: Of the kernel.
        block: Rows taken at a time.

    Returns:
        `[N1, N2]`.
    """
    sums = a_RD.new_zeros(int(clip_a_R[-1]) + 1, int(clip_b_R[-1]) + 1)
    for i in range(0, len(a_RD), block):
        for j in range(0, len(b_RD), block):
            of_a, of_b = clip_a_R[i : i + block], clip_b_R[j : j + block]
            kernel = gaussian_kernel(a_RD[i : i + block], b_RD[j : j + block], bandwidth)
            first, last = int(of_a[0]), int(of_a[-1]) + 1
            part = kernel.new_zeros(last - first, len(of_b)).index_add_(0, of_a - first, kernel)
            sums[first:last].index_add_(1, of_b, part)
    return sums


def chosen_mean(
    sums_NM: Tensor, counts_N: Tensor, counts_M: Tensor, chosen_NS: Tensor, chosen_MS: Tensor, same: bool
) -> Tensor:
    """`kernel_mean` of choices of clips.

    Args:
        sums_NM: What `clip_kernel` gives.
        counts_N: Rows of each clip.
        counts_M: The same of the other set.
        chosen_NS: 1 for a clip that is in a choice, 0 elsewhere; a column a choice.
        chosen_MS: The same of the other set.
        same: Whether clips of one place have one id: their pairs are left out.

    Returns:
        The means, `[S]`.
    """
    total = ((sums_NM.T @ chosen_NS) * chosen_MS).sum(dim=0)
    pairs = (counts_N @ chosen_NS) * (counts_M @ chosen_MS)
    if same:
        total, pairs = total - sums_NM.diagonal() @ chosen_NS, pairs - (counts_N * counts_M) @ chosen_NS
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
