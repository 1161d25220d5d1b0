"""Windows that cover everything, and parts that sum to one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musiccm.errors import MusiccmError
from musiccm.samplers import FUSIONS, Crops, fade_profile, fusion_profile


@st.composite
def crops(draw: st.DrawFn) -> Crops:
    window = draw(st.integers(1, 12))
    return Crops(draw(st.integers(window, 60)), window, draw(st.integers(1, window)))


@given(crops())
def test_every_frame_is_covered_by_the_fewest_crops(made: Crops) -> None:
    """The printed count of MusicCM, (L - W)/h, is one short and leaves a tail."""
    assert made.length is not None and made.count is not None
    starts = [made.start(i) for i in range(made.count)]
    assert made.count == math.ceil((made.length - made.window) / made.hop) + 1
    assert starts[0] == 0 and starts[-1] == made.length - made.window
    assert all(0 < b - a <= made.hop for a, b in zip(starts, starts[1:], strict=False))
    assert set().union(*(range(s, s + made.window) for s in starts)) == set(range(made.length))
    for done in range(made.count + 1):
        untouched = [s for s in starts[done:]]
        assert made.settled(done) == (min(untouched) if untouched else made.length)


@settings(max_examples=60)
@given(crops(), st.sampled_from(FUSIONS), st.integers(0, 3))
def test_shares_sum_to_one(made: Crops, fusion: str, parity: int) -> None:
    assert made.length is not None and made.count is not None
    total, profile = torch.zeros(made.length), fusion_profile(fusion, made.window)
    for i in range(made.count):
        share = made.share(i, profile, parity)
        total[made.start(i) : made.start(i) + made.window] += share
        if fusion == "swap":
            assert set(share.tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(total, torch.ones(made.length), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fusion", ["uniform", "triangular"])
def test_shares_are_the_least_squares_solution(fusion: str) -> None:
    made, profile = Crops(11, 4, 2), fusion_profile(fusion, 4)
    assert profile is not None and made.count == 5
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows, right = [], []
    fused = torch.zeros(11)
    for i in range(5):
        fused[made.start(i) : made.start(i) + 4] += made.share(i, profile) * values[i]
        for k in range(4):
            root = math.sqrt(float(profile[k]))
            rows.append([root * (frame == made.start(i) + k) for frame in range(11)])
            right.append(root * float(values[i, k]))
    solved = torch.linalg.lstsq(torch.tensor(rows), torch.tensor(right)[:, None]).solution[:, 0]
    torch.testing.assert_close(fused, solved)


def test_swap_alternates_in_the_overlap() -> None:
    made = Crops(12, 8, 4)
    assert made.share(0, None).tolist() == [1, 1, 1, 1, 1, 0, 1, 0]
    assert made.share(1, None).tolist() == [0, 1, 0, 1, 1, 1, 1, 1]
    assert made.share(0, None, 1).tolist() == [1, 1, 1, 1, 0, 1, 0, 1]


def test_without_end_there_is_always_another() -> None:
    endless, long = Crops(None, 8, 3), Crops(800, 8, 3)
    assert endless.count is None and endless.exists(10**9) and not endless.exists(-1)
    for i in range(5):
        for fusion in FUSIONS:
            profile = fusion_profile(fusion, 8)
            assert torch.equal(endless.share(i, profile), long.share(i, profile))


def test_a_fade_drops_the_edges_and_keeps_the_ends_of_the_piece() -> None:
    profile = fade_profile(16, 1, 2)
    assert profile[0] == 0 and (profile[3:-3] == 1).all()
    made = Crops(28, 16, 12)
    first, last = made.share(0, profile), made.share(1, profile)
    assert (first[:12] == 1).all() and first[-1] == 0 and last[0] == 0 and (last[4:] == 1).all()
    torch.testing.assert_close(first[12:] + last[:4], torch.ones(4))


@pytest.mark.parametrize(("arguments", "said"), [((10, 4, 0), "hop"), ((10, 4, 5), "hop"), ((3, 4, 2), "shorter")])
def test_what_does_not_fit_is_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(MusiccmError, match=said):
        Crops(*arguments)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlaps(overlap: float) -> None:
    with pytest.raises(MusiccmError, match="overlap"):
        Crops.overlapping(64, 32, overlap)
    assert Crops.overlapping(64, 32, 0.25).hop == 24 and Crops.overlapping(64, 2, 0.9).hop == 1
    with pytest.raises(MusiccmError, match="fusion"):
        fusion_profile("mean", 4)
