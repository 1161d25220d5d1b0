"""Inception score: hand-checkable cases, the reference implementation, invariance."""

from __future__ import annotations

import math

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics import InceptionScore
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.inception import split_of


def names(n: int) -> list[str]:
    return [f"clip_{i:05d}" for i in range(n)]


def score(logits: torch.Tensor, **kwargs: object) -> dict:
    metric = InceptionScore(**kwargs).to(logits.device)
    metric.update(logits, names(len(logits)))
    return metric.compute()


def test_constant_predictions_score_one(device: str) -> None:
    result = score(torch.tensor([[0.3, -1.0, 2.0]], device=device).repeat(40, 1))
    assert result["is_mean"] == pytest.approx(1.0, abs=1e-12)
    assert result["is_std"] == pytest.approx(0.0, abs=1e-12)
    assert result["n"] == 40


def test_one_hots_score_their_number_a_split(device: str) -> None:
    logits = 1000.0 * torch.eye(527)[torch.arange(1000) % 527]
    logits = (logits - 1000.0).to(device)
    assert score(logits, shuffle_seed=None)["is_mean"] == pytest.approx(100.0, rel=1e-9)
    assert score(logits, splits=1)["is_mean"] == pytest.approx(519.07, abs=0.01)


def test_equals_audioldm_eval_on_clips_sorted_by_id(device: str) -> None:
    calculate_isc = pytest.importorskip("audioldm_eval.metrics.isc").calculate_isc
    logits = 3 * torch.randn(137, 8, generator=torch.Generator().manual_seed(1))
    expected = calculate_isc({"logits": logits}, "logits", rng_seed=2020, samples_shuffle=True, splits=10)
    result = score(logits.to(device))
    assert result["is_mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert result["is_std"] == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_order_of_files_as_audioldm_eval_lists_them() -> None:
    calculate_isc = pytest.importorskip("audioldm_eval.metrics.isc").calculate_isc
    stems = sorted(f"a{i}{end}" for i in range(20) for end in ("", "-b", ".b"))
    files = sorted(f"{stem}.wav" for stem in stems)
    assert [file[:-4] for file in files] != stems
    logits = dict(zip(stems, 3 * torch.randn(60, 6, generator=torch.Generator().manual_seed(5)), strict=True))
    in_order = torch.stack([logits[file[:-4]] for file in files])
    expected = calculate_isc({"logits": in_order}, "logits", rng_seed=2020, samples_shuffle=True, splits=10)
    metric = InceptionScore(sort_key=lambda clip_id: f"{clip_id}.wav")
    metric.update(torch.stack(list(logits.values())), list(logits))
    assert metric.compute()["is_mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert metric.compute()["is_std"] == pytest.approx(expected["inception_score_std"], rel=1e-9)


@pytest.mark.parametrize("buffer_rows", [1, 20, 1000])
def test_hashed_splits_are_those_of_the_ids_and_need_no_logits(buffer_rows: int) -> None:
    logits = 2 * torch.randn(200, 5, generator=torch.Generator().manual_seed(6))
    logits[::7] *= 100  # some probabilities are exactly 0
    expected = []
    for part in range(4):
        mine = logits[[split_of(name, 4) == part for name in names(200)]]
        assert 30 < len(mine) < 70
        expected.append(score(mine, splits=1)["is_mean"])
    metric = InceptionScore(splits=4, splitting="hashed", buffer_rows=buffer_rows)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(7)).tolist()
    for start in range(0, 200, 9):
        part = order[start : start + 9]
        metric.update(logits[part], [names(200)[i] for i in part])
    metric.update(logits[:9], names(9))
    result = metric.compute()
    assert result["n"] == 200
    assert result["is_mean"] == pytest.approx(sum(expected) / 4, rel=1e-9)
    assert result["is_std"] == pytest.approx(float(torch.tensor(expected).double().std(unbiased=False)), rel=1e-6)
    assert sum(len(chunk) for chunk in metric.fake_rows) <= max(buffer_rows, 9)


def test_a_hashed_split_without_clips_is_refused() -> None:
    with pytest.raises(TooFewClips, match="found none in"):
        score(torch.randn(12, 3), splitting="hashed")


def test_one_clip_few_clips_and_no_number(caplog: pytest.LogCaptureFixture) -> None:
    assert score(torch.randn(1, 3), splits=1)["is_mean"] == pytest.approx(1.0)
    score(torch.randn(499, 3))
    assert "499 clips in 10 splits" in caplog.text
    caplog.clear()
    score(torch.randn(500, 3))
    assert not caplog.text
    with pytest.raises(MusiccmError, match="clip_00001"):
        score(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), splits=1)


def test_streaming_identity() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(2)).double()
    p = logits.float().double().softmax(dim=1)
    mean = p.mean(dim=0)
    expected = math.exp(float((p * p.log()).sum(dim=1).mean() - (mean * mean.log()).sum()))
    assert score(logits, splits=1)["is_mean"] == pytest.approx(expected, rel=1e-9)


def test_order_batches_and_repeats_change_nothing() -> None:
    logits = 2 * torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4)).tolist()
    metric = InceptionScore()
    for start in range(0, 60, 7):
        part = order[start : start + 7]
        metric.update(logits[part], [names(60)[i] for i in part])
    metric.update(logits[:9], names(9))
    assert metric.compute() == score(logits)


def test_fewer_clips_than_splits_is_refused() -> None:
    with pytest.raises(MusiccmError, match="found 9 clips"):
        score(torch.zeros(9, 3))
