"""Intervals by several threads are those by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from musiccm.evaluation.comparison import ClipRows, ComparedRow, compare_sets
from musiccm.evaluation.side_by_side import side_by_side


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_calls_come_back_in_order_and_torch_has_its_threads_again(threads: int) -> None:
    together = threading.Barrier(threads)

    def call(number: int) -> tuple[int, int]:
        together.wait(60)  # passes only where so many run at once
        return number, torch.get_num_threads()

    assert side_by_side(call, 6) == [(number, 1) for number in range(6)]
    assert torch.get_num_threads() == threads
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, 6)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("clips", "width"), [(90, 8), (40, 64)])  # moments, and inner products of rows
def test_a_comparison_is_the_same_by_any_number_of_threads(clips: int, width: int) -> None:
    def rows() -> ClipRows:
        return ClipRows([f"c{n}" for n in range(clips)], torch.randn(clips, width).relu(), [1] * clips)

    real, floor = rows(), rows()
    models = [ComparedRow("teacher", rows(), 100, True), ComparedRow("student", rows(), 4, False)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(compare_sets("x", real, floor, models, "teacher", draws=24))
    torch.set_num_threads(before)
    one, three = found
    for label, row in one.items():
        assert row.keys() == three[label].keys() and row["draws_x"] > 0
        for key, value in row.items():
            expected = pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
            assert three[label][key] == expected
