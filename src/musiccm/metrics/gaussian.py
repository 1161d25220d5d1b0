"""Gaussians fitted to feature rows, merged exactly, and the Frechet distance between two of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips

Method = Literal["auto", "nuclear", "eigen", "sqrtm"]


class Moments(NamedTuple):
    """Count, mean `[D]` and sum of outer products of deviations `[D, D]`, float64."""

    n: int
    mean: Tensor
    m2: Tensor

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (n - 1), `[D, D]`."""
        return self.m2 / (self.n - 1)


def moments_of(rows_RD: Tensor) -> Moments:
    """Fit a Gaussian to rows.

    Args:
        rows_RD: Feature rows, `[R, D]`.

    Returns:
        Their moments in float64.
    """
    rows = rows_RD.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return Moments(rows.shape[0], mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets of rows together (Chan, Golub and LeVeque 1983), without cancellation.

    Args:
        a: Moments of one set.
        b: Moments of the other.

    Returns:
        Moments of the union.
    """
    if a.n == 0 or b.n == 0:
        return b if a.n == 0 else a
    n = a.n + b.n
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    return Moments(n, mean, a.m2 + b.m2 + torch.outer(delta, delta) * (a.n * b.n / n))


def root_of(cov_DD: Tensor) -> Tensor:
    """The symmetric square root of a covariance.

    Args:
        cov_DD: Covariance, `[D, D]`.

    Returns:
        `[D, D]`. Negative eigenvalues, which only rounding makes, count as zero.
    """
    values, vectors = torch.linalg.eigh(cov_DD)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def trace_sqrt_eigen(cov1_DD: Tensor, cov2_DD: Tensor, root1_DD: Tensor | None = None) -> Tensor:
    """`tr (S1 S2)^{1/2}` as the trace of the square root of the symmetric `S1^{1/2} S2 S1^{1/2}`.

    Args:
        cov1_DD: Covariance, `[D, D]`.
        cov2_DD: Covariance, `[D, D]`.
        root1_DD: `root_of(cov1_DD)`, where it is known already.

    Returns:
        The trace, a scalar. Negative eigenvalues, which only rounding makes, count as zero.
    """
    root = root_of(cov1_DD) if root1_DD is None else root1_DD
    inner = root @ cov2_DD @ root
    return torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()


def trace_sqrt_nuclear(inner_RR: Tensor) -> Tensor:
    """`tr (S1 S2)^{1/2}` as the nuclear norm of `A B^T`, where `A^T A = S1` and `B^T B = S2`.

    Exact, and much cheaper than any D x D form while there are fewer rows than dimensions (FastFID, arXiv 2009.14075).

    Args:
        inner_RR: Inner products of the rows of both sets, which may be off centre, `[R1, R2]`.

    Returns:
        The trace, a scalar.
    """
    over, across = inner_RR.mean(dim=0), inner_RR.mean(dim=1, keepdim=True)
    scale = ((inner_RR.shape[0] - 1) * (inner_RR.shape[1] - 1)) ** 0.5
    return torch.linalg.svdvals(inner_RR - over - across + over.mean()).sum() / scale


def trace_sqrt_sqrtm(cov1_DD: Tensor, cov2_DD: Tensor, eps: float = 1e-6) -> Tensor:
    """`tr (S1 S2)^{1/2}` by a general matrix square root: the published toolkits' way, kept for parity with them.

    Args:
        cov1_DD: Covariance, `[D, D]`.
        cov2_DD: Covariance, `[D, D]`.
        eps: Added to both diagonals where the root of the product is not finite.

    Returns:
        The trace, a scalar.

    Raises:
        MusiccmError: The root has an imaginary diagonal beyond 1e-3.
    """
    import scipy.linalg

    s1, s2 = cov1_DD.cpu().numpy(), cov2_DD.cpu().numpy()
    root = torch.as_tensor(scipy.linalg.sqrtm(s1 @ s2))
    if not torch.isfinite(torch.view_as_real(root) if root.is_complex() else root).all():
        eye = eps * torch.eye(len(s1), dtype=torch.float64).numpy()
        root = torch.as_tensor(scipy.linalg.sqrtm((s1 + eye) @ (s2 + eye)))
    if root.is_complex():
        worst = float(root.diagonal().imag.abs().max())
        if worst > 1e-3:
            raise MusiccmError(f"Frechet distance by sqrtm: expected a real root, found imaginary part {worst:.3g}")
        root = root.real
    return root.trace().to(cov1_DD.device)


def frechet_distance(a: Moments, b: Moments, method: Method = "auto", root_a_DD: Tensor | None = None) -> float:
    """`|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^{1/2})` (FID, arXiv 1706.08500, equation 6), unbiased
    covariances, float64.

    Args:
        a: Moments of one set.
        b: Moments of the other.
        method: `eigen` (also `auto`) or `sqrtm`.
        root_a_DD: `root_of` the covariance of a, for `eigen`, where it is known already.

    Returns:
        The squared distance; tiny negative rounding is kept at 0.

    Raises:
        MusiccmError: Fewer than two rows in a set, different widths, or `nuclear`, which needs the rows.
    """
    _check(a.n, b.n, len(a.mean), len(b.mean))
    if method == "nuclear":
        raise MusiccmError("Frechet distance: the nuclear-norm route needs the feature rows, found only moments")
    gap, covariances = (a.mean - b.mean).square().sum(), (a.covariance, b.covariance)
    trace = trace_sqrt_sqrtm(*covariances) if method == "sqrtm" else trace_sqrt_eigen(*covariances, root_a_DD)
    value = gap + covariances[0].trace() + covariances[1].trace() - 2 * trace
    # The reference form is returned as it comes, so that parity is not hidden by the clamp.
    return float(value) if method == "sqrtm" else max(float(value), 0.0)


def frechet_distance_of_rows(
    rows_a: Tensor, rows_b: Tensor, method: Method = "auto", inner_RR: Tensor | None = None
) -> float:
    """`frechet_distance` where all rows are at hand.

    Args:
        rows_a: Feature rows of one set, `[R1, D]`.
        rows_b: Feature rows of the other, `[R2, D]`.
        method: `auto` takes `nuclear`, which needs no covariance, when a set has fewer rows than dimensions.
        inner_RR: Inner products of the rows, for `nuclear`, where they are known already, `[R1, R2]`.

    Returns:
        The squared distance; tiny negative rounding is kept at 0.
    """
    _check(len(rows_a), len(rows_b), rows_a.shape[1], rows_b.shape[1])
    few = fewer_than_dimensions(len(rows_a), len(rows_b), rows_a.shape[1])
    if method != "nuclear" and not (method == "auto" and few):
        return frechet_distance(moments_of(rows_a), moments_of(rows_b), method)
    means = [rows.double().mean(dim=0) for rows in (rows_a, rows_b)]
    a, b = (rows.double() - mean for rows, mean in zip((rows_a, rows_b), means, strict=True))
    traces = a.square().sum() / (len(a) - 1) + b.square().sum() / (len(b) - 1)
    inner_RR = a @ b.T if inner_RR is None else inner_RR
    value = (means[0] - means[1]).square().sum() + traces - 2 * trace_sqrt_nuclear(inner_RR)
    return max(float(value), 0.0)


def fewer_than_dimensions(rows_a: int, rows_b: int, width: int) -> bool:
    """Whether `auto` takes the route over the rows, and not that over covariances."""
    return min(rows_a, rows_b) < width


def _check(rows_a: int, rows_b: int, width_a: int, width_b: int) -> None:
    if rows_a < 2 or rows_b < 2:
        raise TooFewClips(f"Frechet distance: expected at least 2 rows in each set, found {rows_a} and {rows_b}")
    if width_a != width_b:
        raise MusiccmError(
            f"Frechet distance: expected features of one width, found {width_a} and {width_b}; were both sets embedded "
            "by the same network?"
        )
