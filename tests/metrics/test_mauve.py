"""MAUVE against closed forms and against figures of its authors' own package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.mauve import Mauve, cluster_labels, divergence_frontier, frontier_area, reduced

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])


def score(real: np.ndarray, fake: np.ndarray, shuffle: int | None = None, **options: int) -> dict:
    metric = Mauve(**options)
    for rows, is_real in ((real, True), (fake, False)):
        order = np.arange(len(rows)) if shuffle is None else np.random.RandomState(shuffle).permutation(len(rows))
        for part in np.array_split(order, 3):
            metric.update(torch.from_numpy(rows[part]), [f"c{i:04d}" for i in part], is_real)
    return metric.compute()


def gaussians(n: int, d: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.RandomState(seed)
    return draw.randn(n, d), draw.randn(n, d) + shift


@pytest.mark.parametrize("scaling", [1, 5])
def test_the_area_is_the_integral_of_the_frontier(scaling: int) -> None:
    def ends(weight: float) -> tuple[float, float]:
        mixed = weight * P + (1 - weight) * Q
        x, y = (np.exp(-scaling * np.sum(one * np.log(one / mixed))) for one in (Q, P))
        return x, y

    def height(weight: float) -> float:
        x, y = ends(weight)
        return -y * x * scaling * np.sum(Q * (P - Q) / (weight * P + (1 - weight) * Q))  # -y dx/dw

    # The curve goes from (1, y) at weight 0 to (x, 1) at weight 1, and on straight to the axis.
    assert ends(0)[0] == 1 and ends(1)[1] == 1
    expected = quad(height, 0, 1)[0] + ends(1)[0]
    assert frontier_area(divergence_frontier(P, Q, scaling, 4001)) == pytest.approx(expected, abs=1e-5)


def test_ends_of_the_scale_in_closed_form() -> None:
    for scaling, binomial in ((1, 2), (2, 6), (5, 252)):
        # Nothing in common: x = (1 - w)^c, y = w^c, whose area is the Beta function c B(c, c + 1) = 1 / C(2 c, c).
        apart = frontier_area(divergence_frontier(np.array([1.0, 0.0]), np.array([0.0, 1.0]), scaling, 4001))
        assert apart == pytest.approx(1 / binomial, rel=1e-4)
    assert frontier_area(divergence_frontier(P, P)) == pytest.approx(1.0, abs=1e-12)


def test_histograms_give_what_the_authors_package_gives() -> None:
    """By mauve-text 0.4.0 (PyPI): its divergence curve with its default 25 mixtures, its area by scikit-learn."""
    apart = np.array([0.7, 0.3, 0.0]), np.array([0.0, 0.4, 0.6])
    for (p, q), scaling, expected in (
        ((P, Q), 5.0, 0.7209286105082093), ((P, Q), 2.0, 0.9330248036027856), (apart, 5.0, 0.035932547333723065),
    ):
        assert frontier_area(divergence_frontier(p, q, scaling)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "d", "shift", "theirs", "deviation"), [
    (400, 8, 0.0, 0.964, 0.012), (400, 8, 0.3, 0.736, 0.034), (400, 8, 1.0, 0.0553, 0.0063),
    (200, 8, 0.5, 0.549, 0.048),
])
def test_features_give_what_the_authors_package_gives(
    n: int, d: int, shift: float, theirs: float, deviation: float
) -> None:
    """By `compute_mauve` of mauve-text 0.4.0 over 25 seeds, one k-means each: mean and deviation over the seeds.

    Its clusters are those of FAISS, from other first centres, so that only the distribution over seeds can agree.
    """
    found = score(*gaussians(n, d, shift), clusterings=15)
    assert found["clusters"] == n // 10
    # standard errors of the two means, 3 of them
    assert abs(found["mauve"] - theirs) < 3 * deviation * (1 / 15 + 1 / 25) ** 0.5
    assert 0.4 < found["std"] / deviation < 2.5


def test_a_set_against_itself_and_against_one_far_away() -> None:
    real, fake = gaussians(120, 6, 50.0)
    assert score(real, real)["mauve"] == pytest.approx(1.0, abs=1e-9)
    # all points lie in other clusters; 25 points of the curve make 1/252 a little larger
    centred = np.concatenate([real, -fake])
    assert score(centred[:120], centred[120:])["mauve"] < 0.01


def test_the_bias_is_that_of_the_histograms() -> None:
    """Two samples of one distribution in k fixed cells: E KL(p || r) = E sum (p - q)^2 / 8r = k / 4n at the middle."""
    draw = np.random.RandomState(0)
    for n in (500, 2000):
        cells = n // 10
        counts = [draw.multinomial(n, np.full(cells, 1 / cells), size=2) / n for _ in range(40)]
        found = np.mean([divergence_frontier(p, q, 5.0, 3)[2, 0] for p, q in counts])
        assert found == pytest.approx(np.exp(-5 * cells / (4 * n)), abs=0.01)  # .882, whatever n is


def test_order_batches_and_repeats_change_nothing() -> None:
    real, fake = gaussians(90, 5, 0.4, 3)
    first = score(real, fake)
    assert score(real, fake, shuffle=1) == first
    assert (first["n"], first["n_real"], first["rows"], first["clusters"]) == (90, 90, 90, 9)
    assert score(real, fake, seed=7)["mauve"] != first["mauve"]


def test_components_explain_the_share_that_was_asked_for() -> None:
    draw = np.random.RandomState(0)
    rows = torch.from_numpy(draw.randn(200, 3) @ np.diag([1.0, 0.5, 0.01]) + [5.0, 0, 0])
    kept = reduced(rows, 0.99)
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    variance = np.linalg.eigvalsh(np.cov(unit.T))[::-1]
    count = int(np.searchsorted(variance.cumsum() / variance.sum(), 0.99)) + 1
    assert kept.shape == (200, count)
    np.testing.assert_allclose(kept.var(dim=0).numpy(), variance[:count], rtol=1e-9)
    few = torch.from_numpy(draw.randn(7, 12))  # fewer rows than dimensions: distances stay
    np.testing.assert_allclose(torch.cdist(reduced(few, 1 - 1e-12), reduced(few, 1 - 1e-12)).numpy(),
                               torch.cdist(*[few / few.norm(dim=1, keepdim=True)] * 2).numpy(), atol=1e-9)
    blobs = np.repeat(np.eye(3) * 10, 20, axis=0) + 0.1 * draw.randn(60, 3)
    assert any(len(set(cluster_labels(blobs, 3, seed)[::20])) == 3 for seed in range(5))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TooFewClips, match="at least 2 clips"):
        score(np.zeros((1, 2)), np.zeros((1, 2)))
    for bad in ({"clusters": 1}, {"clusterings": 0}, {"scaling": 0}):
        with pytest.raises(MusiccmError, match="MAUVE: expected"):
            Mauve(**bad)
