"""Frechet distance against closed forms, the reference implementation, and itself under any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musiccm.errors import MusiccmError
from musiccm.metrics import FrechetDistance
from musiccm.metrics.gaussian import Moments, frechet_distance, merge, moments_of


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_rows(covariance: list[list[float]], mean: list[float]) -> torch.Tensor:
    """Rows whose sample mean and unbiased covariance are exactly those asked for."""
    d = len(mean)
    base = torch.cat([torch.eye(d), -torch.eye(d)]).double() * math.sqrt((2 * d - 1) / 2)
    values, vectors = np.linalg.eigh(np.array(covariance, dtype=float))
    root = torch.as_tensor(vectors @ np.diag(np.sqrt(values)) @ vectors.T)
    return base @ root + torch.tensor(mean, dtype=torch.float64)


def distance(real: torch.Tensor, fake: torch.Tensor, **kwargs: object) -> float:
    metric = FrechetDistance(**kwargs).to(real.device)
    metric.update(real, [f"r{i}" for i in range(len(real))], real=True)
    metric.update(fake, [f"f{i}" for i in range(len(fake))], real=False)
    return metric.compute()["fd"]


CASES = [
    ([[4, 0], [0, 9]], [[1, 0], [0, 1]], 5.0),
    ([[2, 1], [1, 2]], [[2, -1], [-1, 2]], 8 - 4 * math.sqrt(3)),
    ([[1, 0], [0, 0]], [[0, 0], [0, 1]], 2.0),
    ([[4.0, 0], [0, 0.25]], [[4.0, 0], [0, 0.25]], 0.0),
]


@pytest.mark.parametrize("method", ["auto", "nuclear", "eigen"])
@pytest.mark.parametrize(("cov1", "cov2", "expected"), CASES)
def test_hand_checkable_covariances(cov1: list, cov2: list, expected: float, method: str, device: str) -> None:
    a, b = exact_rows(cov1, [0.0, 0.0]), exact_rows(cov2, [3.0, -4.0])
    assert distance(a.to(device), b.to(device), method=method) == pytest.approx(expected + 25.0, abs=1e-9)


def test_one_dimension_has_the_closed_form() -> None:
    a, b = 2.0 * rows(50, 1, 0) + 1.0, 0.5 * rows(70, 1, 1)
    expected = float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_identity_translation_scale_rotation_symmetry() -> None:
    a, b = rows(60, 5, 2), rows(40, 5, 3) * 1.7 + 0.4
    shift = torch.arange(5, dtype=torch.float64)
    centred = a - a.mean(dim=0)
    rotation = torch.linalg.qr(rows(5, 5, 4))[0]
    assert distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert distance(a, a + shift) == pytest.approx(float(shift @ shift), rel=1e-9)
    assert distance(centred, 3 * centred) == pytest.approx(4 * float(a.T.cov().trace()), rel=1e-9)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 30), (60, 50, 8)])
def test_routes_agree(n: int, m: int, d: int) -> None:
    a, b = rows(n, d, 5), rows(m, d, 6) * 1.3 + 0.2
    nuclear, eigen, auto = (distance(a, b, method=method) for method in ("nuclear", "eigen", "auto"))
    assert nuclear == pytest.approx(eigen, abs=1e-5)
    assert auto == (nuclear if max(n, m) < d else eigen)


def test_equals_audioldm_eval() -> None:
    calculate_fid = pytest.importorskip("audioldm_eval.metrics.fid").calculate_fid
    a, b = rows(80, 12, 7), rows(70, 12, 8) * 1.2 + 0.1
    expected = calculate_fid({"2048": a}, {"2048": b}, "2048")["frechet_distance"]
    assert distance(a, b, method="sqrtm") == pytest.approx(expected, rel=1e-10)
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_streaming_moments_equal_one_pass_and_survive_large_means() -> None:
    data = rows(501, 4, 9) + 1e6
    total = Moments(0, torch.zeros(4).double(), torch.zeros(4, 4).double())
    for chunk in data.split([1, 7, 200, 293]):
        total = merge(total, moments_of(chunk))
    assert total.n == 501
    np.testing.assert_allclose(total.covariance, np.cov(data.numpy(), rowvar=False), rtol=1e-7)


def test_equals_audioldm_eval_on_float32_features_wider_than_many() -> None:
    calculate_fid = pytest.importorskip("audioldm_eval.metrics.fid").calculate_fid
    # As PANN's: not negative, correlated, on float32, and fewer clips than dimensions, where sqrtm is the weaker side.
    mix = torch.randn(8, 60, generator=torch.Generator().manual_seed(30))
    a, b = ((rows(50, 8, seed).float() @ mix + shift).relu() for seed, shift in ((31, 1.0), (32, 1.2)))
    expected = calculate_fid({"2048": a}, {"2048": b}, "2048")["frechet_distance"]
    assert distance(a, b) == pytest.approx(expected, rel=1e-4)
    a, b = ((rows(400, 8, seed).float() @ mix + rows(400, 60, seed + 9).float()) for seed in (33, 34))
    expected = calculate_fid({"2048": a}, {"2048": b}, "2048")["frechet_distance"]
    assert distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_memory_is_flat_in_the_number_of_clips() -> None:
    metric = FrechetDistance(buffer_rows=64)
    held = []
    for start in range(0, 1200, 10):
        metric.update(rows(10, 5, start), [f"c{i}" for i in range(start, start + 10)], real=False)
        names = [f"fake_{part}" for part in ("rows", "counts", "n", "mean", "m2")]
        held.append(sum(chunk.numel() for name in names for chunk in getattr(metric, name)))
    assert max(held) <= 64 * 6 + 1 + 5 + 25
    assert max(held[60:]) == max(held[6:60])


def test_few_rows_are_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    metric = FrechetDistance()
    metric.update(rows(30, 3, 0), [f"r{i}" for i in range(30)], real=True)
    metric.update(rows(29, 3, 1), [f"f{i}" for i in range(29)], real=False)
    for i in (29, 30):
        metric.compute()
        assert caplog.text.count("30 reference and 29 generated rows for 3 dimensions") == 1
        metric.update(rows(1, 3, i), [f"f{i}"], real=False)
    caplog.clear()
    distance(rows(30, 3, 0), rows(30, 3, 1))
    assert not caplog.text


@given(st.permutations(list(range(24))), st.lists(st.integers(1, 6), min_size=24, max_size=24), st.integers(1, 40))
def test_any_order_and_batching_give_the_same(order: list[int], sizes: list[int], buffer_rows: int) -> None:
    fake, counts = rows(60, 3, 20), [1 + i % 4 for i in range(24)]
    clips = fake.split(counts)
    metric = FrechetDistance(buffer_rows=buffer_rows)
    metric.update(rows(40, 3, 21), [f"r{i}" for i in range(40)], real=True)
    start = 0
    for size in sizes:
        part = order[start : start + size]
        start += size
        if part:
            metric.update(
                torch.cat([clips[i] for i in part]), [f"f{i}" for i in part], False, [counts[i] for i in part]
            )
    result = metric.compute()
    assert (result["n"], result["rows"]) == (24, 60)
    assert result["fd"] == pytest.approx(distance(rows(40, 3, 21), fake), rel=1e-9)


@pytest.mark.parametrize("buffer_rows", [1, 16, 1000])
def test_batching_order_and_folding_change_nothing(buffer_rows: int) -> None:
    real, fake = rows(90, 6, 10), rows(77, 6, 11) + 0.3
    whole = distance(real, fake)
    metric = FrechetDistance(buffer_rows=buffer_rows)
    order = torch.randperm(77, generator=torch.Generator().manual_seed(0)).tolist()
    for chunk in torch.arange(90).split(13):
        metric.update(real[chunk], [f"r{i}" for i in chunk.tolist()], real=True)
    for start in range(0, 77, 10):
        part = order[start : start + 10]
        metric.update(fake[part], [f"f{i}" for i in part], real=False)
    result = metric.compute()
    assert result["fd"] == pytest.approx(whole, rel=1e-9)
    assert (result["n"], result["rows"], result["n_real"]) == (77, 77, 90)


@pytest.mark.parametrize("buffer_rows", [1, 1000])
def test_repeated_clips_count_once(buffer_rows: int) -> None:
    real, fake = rows(30, 3, 12), rows(20, 3, 13)
    metric = FrechetDistance(buffer_rows=buffer_rows)
    metric.update(real, [f"r{i}" for i in range(30)], real=True)
    metric.update(fake, [f"f{i}" for i in range(20)], real=False)
    metric.update(fake[:5], [f"f{i}" for i in range(5)], real=False)
    assert metric.compute()["fd"] == pytest.approx(distance(real, fake), rel=1e-9)
    assert metric.compute()["n"] == 20


def test_patches_are_rows_and_clips_are_counted() -> None:
    real, fake = rows(24, 3, 14), rows(20, 3, 15)
    metric = FrechetDistance()
    metric.update(real, [f"r{i}" for i in range(8)], real=True, counts=[1, 5, 3, 3, 3, 3, 2, 4])
    metric.update(fake, [f"f{i}" for i in range(5)], real=False, counts=[4, 4, 1, 7, 4])
    metric.update(fake[:11], ["f4", "f9", "f1"], real=False, counts=[1, 5, 5])  # only f9 is new: rows 1 to 5
    result = metric.compute()
    assert result["fd"] == pytest.approx(distance(real, torch.cat([fake, fake[1:6]])), rel=1e-9)
    assert (result["n"], result["rows"], result["n_real"], result["rows_real"]) == (6, 25, 8, 24)
    with pytest.raises(MusiccmError, match="add up"):
        metric.update(fake[:3], ["x", "y"], real=False, counts=[1, 1])
    with pytest.raises(MusiccmError, match="at least one row a clip, found none for 1, first .'y'"):
        metric.update(fake[:3], ["x", "y"], real=False, counts=[3, 0])


def test_reference_is_kept_over_reset() -> None:
    real, fake = rows(30, 3, 16), rows(20, 3, 17)
    metric = FrechetDistance(reset_real_features=False)
    metric.update(real, [f"r{i}" for i in range(30)], real=True)
    metric.update(fake + 5, [f"f{i}" for i in range(20)], real=False)
    metric.reset()
    metric.update(real, [f"r{i}" for i in range(30)], real=True)
    metric.update(fake, [f"f{i}" for i in range(20)], real=False)
    result = metric.compute()
    assert result["fd"] == pytest.approx(distance(real, fake), rel=1e-9)
    assert result["n_real"] == 30


def test_bad_input_names_what_is_wrong() -> None:
    metric = FrechetDistance()
    broken = rows(3, 2, 0)
    broken[1, 0] = float("nan")
    with pytest.raises(MusiccmError, match="clip-b"):
        metric.update(broken, ["clip-a", "clip-b", "clip-c"], real=True)
    with pytest.raises(MusiccmError, match="2 rows and 1 ids"):
        metric.update(rows(2, 2, 0), ["a"], real=True)
    with pytest.raises(MusiccmError, match="at least 2 rows"):
        frechet_distance(moments_of(rows(1, 2, 0)), moments_of(rows(5, 2, 1)))
    with pytest.raises(MusiccmError, match="one width"):
        frechet_distance(moments_of(rows(5, 2, 0)), moments_of(rows(5, 3, 1)))
