"""The jackknife against closed forms: the error of a mean, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics.gaussian import frechet_distance_of_rows
from musiccm.metrics.jackknife import jackknife


def test_the_error_of_a_mean_is_known_and_a_pair_shares_its_halves() -> None:
    n = 64
    values = np.random.RandomState(0).randn(n)
    numbers = {f"c{i:02d}": value for i, value in enumerate(values)}

    def statistic(ids: list[str]) -> dict[str, float]:
        mean = float(np.mean([numbers[clip_id] for clip_id in ids]))
        return {"mean": mean, "difference": (mean + 1) - mean}

    found = jackknife(statistic, list(numbers), draws=4000)
    # Half-samples without replacement: their variance about the whole is s^2 / n exactly.
    assert found["mean"].error == pytest.approx(values.std(ddof=1) / n**0.5, rel=0.04)
    assert found["mean"].value == pytest.approx(values.mean())
    assert found["mean"].high - found["mean"].low == pytest.approx(2 * 1.96 * found["mean"].error, rel=1e-3)
    assert found["difference"].error < 1e-12


def test_intervals_of_a_ratio_of_excesses_hold_the_truth() -> None:
    """Two models and a perfect one that answer the same captions: the ratio of their excess distances is .25."""
    n, d, worlds, inside = 160, 3, 24, 0
    for seed in range(worlds):
        generator = torch.Generator().manual_seed(seed)
        common = 0.7 * torch.randn(n, d, generator=generator)
        sets = [common + 0.7 * torch.randn(n, d, generator=generator) + shift for shift in (0, 0, 0.8, 0.4)]
        place = {f"c{i:03d}": i for i in range(n)}

        def statistic(ids: list[str], place: dict = place, sets: list = sets) -> dict[str, float]:
            at = [place[clip_id] for clip_id in ids]
            floor, teacher, student = (frechet_distance_of_rows(sets[0][at].double(), rows[at].double())
                                       for rows in sets[1:])
            return {"ratio": (student - floor) / (teacher - floor)}

        found = jackknife(statistic, list(place), draws=40)["ratio"]
        inside += found.low <= 0.25 <= found.high
    # 95 % of them, less three standard errors of that share.
    assert inside >= worlds * 0.95 - 3 * (worlds * 0.95 * 0.05) ** 0.5


def test_bad_input() -> None:
    for ids, draws in ((["a"] * 9, 9), (list("abcdefg"), 9), (list("abcdefghi"), 1)):
        with pytest.raises(MusiccmError, match="jackknife"):
            jackknife(lambda ids: {"n": len(ids)}, ids, draws)
