"""FD-infinity: what is left of the bias where the true distance is known."""

from __future__ import annotations

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics import FrechetDistance, FrechetInfinity
from musiccm.metrics.clips import TooFewClips


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def filled(metric: FrechetDistance | FrechetInfinity, real: torch.Tensor, fake: torch.Tensor) -> dict:
    metric.update(real, [f"r{i:04d}" for i in range(len(real))], real=True)
    metric.update(fake, [f"f{i:04d}" for i in range(len(fake))], real=False)
    return metric.compute()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_bias_is_gone_where_the_distance_is_known(shift: float) -> None:
    d, n, true = 24, 300, 24 * shift**2
    plain, extrapolated = [], []
    for seed in range(8):
        found = filled(FrechetInfinity(seed=seed), rows(n, d, 2 * seed), rows(n, d, 2 * seed + 1) + shift)
        plain.append(found["distances"][0])
        extrapolated.append(found["fd_inf"])
    plain_bias = sum(plain) / 8 - true
    # Both sets of n: (2 d + d (d + 1) / 2) / n, of isotropic Gaussians.
    assert plain_bias == pytest.approx((2 * d + d * (d + 1) / 2) / n, rel=0.25)
    assert abs(sum(extrapolated) / 8 - true) < plain_bias / 5


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_paired_sets_have_no_bias_either(shared: float, shift: float) -> None:
    d, n, draws = 12, 240, 24
    values = []
    for seed in range(draws):
        common, own, other = (rows(n, d, 3 * seed + i) for i in range(3))
        metric, ids = FrechetInfinity(seed=seed), [f"c{i:04d}" for i in range(n)]
        metric.update(shared**0.5 * common + (1 - shared) ** 0.5 * own, ids, True)
        metric.update(shared**0.5 * common + (1 - shared) ** 0.5 * other + shift, ids, False)
        values.append(metric.compute()["fd_inf"] - d * shift**2)
    error = torch.tensor(values)
    # Terms of order 1/n^2 are left: (d / n)^2 times d.
    assert abs(float(error.mean())) < 3.5 * float(error.std()) / draws**0.5 + d * (d / n) ** 2


def test_first_point_is_the_plain_distance_and_a_reference_of_another_size_shrinks_alike() -> None:
    real, fake = rows(120, 4, 0), rows(60, 4, 1) + 0.3
    found = filled(FrechetInfinity(), real, fake)
    assert found["distances"][0] == pytest.approx(filled(FrechetDistance(), real, fake)["fd"], rel=1e-9)
    assert (found["n"], found["n_real"], min(found["shares"])) == (60, 120, 0.25)


def test_order_does_not_matter_and_clips_are_drawn_whole() -> None:
    real, fake = rows(64, 3, 2), rows(64, 3, 3)
    metrics = FrechetInfinity(), FrechetInfinity()
    for metric, order in zip(metrics, (range(16), reversed(range(16))), strict=True):
        for i in order:
            part = slice(4 * i, 4 * i + 4)
            metric.update(real[part], [f"c{i:02d}"], True, [4])
            metric.update(fake[part], [f"c{i:02d}"], False, [4])
    first, second = (metric.compute() for metric in metrics)
    assert first == second
    assert (first["n"], first["rows"]) == (16, 64)


def test_too_few_clips_are_refused_or_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TooFewClips, match="found 20 and 7"):
        filled(FrechetInfinity(), rows(20, 3, 0), rows(7, 3, 1))
    with pytest.raises(MusiccmError, match="found 1 and"):
        FrechetInfinity(points=1)
    found = filled(FrechetInfinity(), rows(64, 32, 0), rows(64, 32, 1))
    assert min(found["shares"]) == 0.5
    assert "64 generated rows are too few for 32 dimensions" in caplog.text
    caplog.clear()
    assert min(filled(FrechetInfinity(), rows(160, 32, 0), rows(160, 32, 1))["shares"]) == pytest.approx(0.4)
    assert not caplog.text
