"""Similarity with the real clip of the same id, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.real_audio import RealAudioSimilarity
from musiccm.metrics.text_audio import TextAudioSimilarity

N = 50
REAL, FAKE = (torch.randn(N, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
IDS = [f"c{n:02d}" for n in range(N)]


def cosines(first, second):
    first, second = first.double().numpy(), second.double().numpy()
    return np.sum(first * second, 1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_pairs_go_by_id_and_not_by_place():
    metric = RealAudioSimilarity(reset_real_features=False)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2)).tolist()
    for first in range(0, N, 7):
        metric.update(REAL[order[first : first + 7]], [IDS[n] for n in order[first : first + 7]], real=True)
    for part in (slice(30, N), slice(0, 30), slice(10, 20)):  # the last is there already
        metric.update(FAKE[part], IDS[part], real=False)
    cosine = cosines(REAL, FAKE)
    assert (cosine < 0).sum() > 10  # what is clamped is clamped clip by clip
    assert metric.compute() == {"ra_similarity": pytest.approx(cosine.mean()), "n": N,
                                "clap_a": pytest.approx(100 * np.maximum(cosine, 0).mean())}
    assert metric.compute()["clap_a"] > 100 * cosine.mean() + 1
    # the reference stays for the next model, of which there may be fewer clips
    metric.reset()
    metric.update(REAL[5:9], IDS[5:9], real=False)
    assert metric.compute() == {"ra_similarity": pytest.approx(1.0), "clap_a": pytest.approx(100.0), "n": 4}


def test_a_clip_without_its_real_one_is_named():
    metric = RealAudioSimilarity()
    with pytest.raises(TooFewClips):
        metric.compute()
    metric.update(REAL, IDS, real=True)
    metric.update(FAKE[:2], ["c00", "other"], real=False)
    with pytest.raises(MusiccmError, match=r"found none for 1, first \['other'\]"):
        metric.compute()
    metric.reset()
    metric.update(FAKE[:1], ["c00"], real=False)
    with pytest.raises(MusiccmError, match="found none for 1"):
        metric.compute()
    with pytest.raises(MusiccmError, match="NaN or infinity"):
        metric.update(torch.full((1, 3), torch.nan), ["x"], real=True)


def test_the_score_with_the_caption_is_clamped_alike():
    metric = TextAudioSimilarity()
    metric.update(REAL, FAKE, IDS)
    cosine = cosines(REAL, FAKE)
    assert metric.compute()["clap_t"] == pytest.approx(100 * np.maximum(cosine, 0).mean())
    assert metric.compute()["ta_similarity"] == pytest.approx(cosine.mean())
