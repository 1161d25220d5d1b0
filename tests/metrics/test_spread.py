"""The spread of many noises for one caption against a closed form, and unbiased for any number of them."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.special import ive

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.spread import spread


def clips(captions: int, noises: int, deviation: float, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Clips on a circle: an angle a caption, and a normal deviation from it a clip."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(captions, 1, generator=generator)
    angle = (angle + deviation * torch.randn(captions, noises, generator=generator)).flatten()
    lengths = 1 + torch.rand(len(angle), generator=generator)
    rows = lengths[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return rows, [i for i in range(captions) for _ in range(noises)]


def test_equals_the_definition_pair_by_pair() -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    captions = list("abacabcba")

    def distance(i: int, j: int) -> float:
        return 1 - float(torch.nn.functional.cosine_similarity(rows[i], rows[j], dim=0))

    found = spread(rows, captions)
    for caption in "abc":
        mine = [i for i, other in enumerate(captions) if other == caption]
        expected = np.mean([distance(i, j) for i, j in combinations(mine, 2)])
        assert found.captions[caption] == pytest.approx(expected, abs=1e-6)
    assert found.interval().value == pytest.approx(np.mean(list(found.captions.values())))


@pytest.mark.parametrize("noises", [2, 3, 16])
def test_is_unbiased_for_any_number_of_noises(noises: int) -> None:
    """Two normal angles of deviation s have the mean cosine exp(-s^2)."""
    deviation, captions = 0.7, 1500
    found = spread(*clips(captions, noises, deviation, noises)).interval()
    assert abs(found.value - (1 - math.exp(-(deviation**2)))) < 4 * found.error
    assert found.error < 0.012


def test_is_that_of_gaussians_in_many_dimensions() -> None:
    """Of N(m, 1) in the plane the mean direction is known (a projected normal), and with it the mean cosine."""
    m, captions = 1.3, 4000
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * captions, 2, generator=generator) + torch.tensor([m, 0.0])
    found = spread(rows, [i // 2 for i in range(2 * captions)]).interval()
    length = math.sqrt(math.pi / 8) * m * (ive(0, m * m / 4) + ive(1, m * m / 4))
    assert abs(found.value - (1 - length**2)) < 4 * found.error


def test_intervals_hold_the_truth_and_ratios_are_of_the_pair() -> None:
    inside = exact = 0
    for seed in range(100):
        wide, narrow = (spread(*clips(40, 3, deviation, 2 * seed + i)) for i, deviation in enumerate((0.8, 0.4)))
        value, ratio = narrow.interval(), narrow.ratio(wide)
        inside += value.low <= 1 - math.exp(-0.16) <= value.high
        exact += ratio.low <= (1 - math.exp(-0.16)) / (1 - math.exp(-0.64)) <= ratio.high
    assert inside >= 88 and exact >= 88
    assert narrow.ratio(narrow)[:3] == (1, pytest.approx(1), pytest.approx(1))


def test_a_collapsed_model_has_no_spread_and_is_no_denominator() -> None:
    rows, captions = clips(20, 4, 0.0, 0)
    alike = spread(rows, captions)
    assert alike.interval().value == pytest.approx(0, abs=1e-6)
    assert spread(*clips(20, 4, 0.5, 1)).ratio(alike).value is None or alike.interval().low > 0


def test_bad_input() -> None:
    with pytest.raises(TooFewClips, match="found 2, 1 of them with one, first 'b'"):
        spread(torch.ones(3, 2), ["a", "a", "b"])
    with pytest.raises(MusiccmError, match="1 of zeros"):
        spread(torch.eye(3)[[0, 1, 2, 0]] * torch.tensor([1.0, 1, 0, 1])[:, None], [0, 0, 1, 1])
    with pytest.raises(MusiccmError, match="3 rows and 4 ids"):
        spread(torch.ones(3, 2), list("aabb"))
    with pytest.raises(MusiccmError, match="2 in one of the two only"):
        spread(torch.ones(4, 2), list("aabb")).ratio(spread(torch.ones(4, 2), list("aacc")))
