"""The number of clips that fits in a validation: measured once, the same on all ranks, never zero."""

from __future__ import annotations

import pytest

from musiccm.evaluation.clip_budget import ClipBudget


def never() -> float:
    raise AssertionError("measured although nothing depends on it")


def test_without_a_limit_nothing_is_measured() -> None:
    budget = ClipBudget(None, 64)
    assert budget.settle(never) == 64
    budget.spent(1e9)
    assert budget.settle(never) == 64


def test_the_pace_settles_the_number_once(caplog: pytest.LogCaptureFixture) -> None:
    budget = ClipBudget(10.0, 64)
    assert budget.settle(lambda: 0.5) == 20
    assert "20 of 64 clips" in caplog.text
    caplog.clear()
    assert budget.settle(never) == 20
    budget.spent(10.9)
    assert budget.settle(never) == 20 and not caplog.text


def test_enough_time_takes_all_clips_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert ClipBudget(10.0, 64).settle(lambda: 0.0) == 64
    assert ClipBudget(10.0, 64, world_size=4).settle(lambda: 0.625) == 64
    assert not caplog.text


def test_an_overrun_makes_the_next_ones_smaller_and_says_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    budget = ClipBudget(10.0, 64, world_size=2)
    assert budget.settle(lambda: 0.5) == 40
    budget.spent(20.0)  # 20 clips a rank, 1 s each
    assert budget.settle(never) == 20
    assert "cannot be compared" in caplog.text
    for _ in range(9):
        budget.spent(1e6)
    assert budget.settle(never) == 2


def test_ranks_follow_rank_zero() -> None:
    said = iter([1.0, 1.0, 40.0])
    budget = ClipBudget(10.0, 64, world_size=2, share=lambda value: next(said))
    assert budget.settle(lambda: 123.0) == 20
    budget.spent(5.0)
    assert budget.n == 20
    budget.spent(5.0)
    assert budget.n == 4


def test_two_clips_are_the_least() -> None:
    assert ClipBudget(1.0, 64).settle(lambda: 9.0) == 2
    assert ClipBudget(1.0, 1).settle(lambda: 9.0) == 1
