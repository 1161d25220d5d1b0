"""What was read against what was asked: orders as wholes, counts between two times, tempi with octaves."""

from __future__ import annotations

import pytest
import torch

from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.readings import Count, Same, Tempo

# columns: two of an order, three of onsets, one of a tempo, two tags of a plain group
GROUPS = {"order": Same((0, 1)), "count": Count((2, 3, 4)), "tempo_bpm": Tempo((5,)), "drums": (6, 7)}
READ = torch.tensor([
    [1.0, 2.0, 0.1, 0.9, -1.0, 126.0, 3.0, 1.0],
    [1.0, 3.0, 0.1, 0.9, 2.0, 60.0, 3.0, 1.0],
    [4.0, 2.0, -1.0, -1.0, -1.0, 200.0, 0.0, 1.0],
])
ASKED = torch.tensor([
    [1.0, 2.0, 2.0, 0.0, 2.5, 120.0, 1.0, 0.0],  # two onsets before 2.5 s, 5 % off the tempo
    [1.0, 2.0, 2.0, 0.0, 2.5, 120.0, 0.0, 1.0],  # the last is another; half of the tempo
    [-1.0, 2.0, -1.0, -1.0, -1.0, 120.0, 0.0, 1.0],  # of the first nothing is asked, and no count
])


def test_each_group_says_itself_what_is_right() -> None:
    metric = AttributeAccuracy(GROUPS)
    metric.update(READ, ASKED, ["a", "b", "c"])
    found = metric.compute()
    assert found["n"] == 3
    assert found["acc_order"] == pytest.approx(2 / 3)  # a, c
    assert found["acc_count"] == 0.5  # a; of b three begin, and c asks for none
    assert found["acc_tempo_bpm"] == pytest.approx(2 / 3)  # 126 and 60, not 200
    assert found["acc_drums"] == pytest.approx(2 / 3)  # argmax: first, first, second
    assert found["acc_order_chance"] is None and found["acc_drums_chance"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("read", "right"), [(127.1, True), (127.3, False), (112.9, True), (112.7, False),
                                             (240.0, True), (63.6, True), (63.7, False), (40.0, False)])
def test_a_tempo_is_right_within_six_percent_in_any_octave(read: float, right: bool) -> None:
    found, asked = Tempo((0,)).compare(torch.tensor([[read]]), torch.tensor([[120.0]]))
    assert (found.item(), asked.item()) == (right, True)


def test_onsets_count_from_the_start_to_before_the_end_alone() -> None:
    times = torch.tensor([[0.5, 1.0, 2.0, -1.0]])
    for start, end, number in ((0.0, 2.5, 3), (0.5, 2.0, 2), (0.6, 2.0, 1), (0.0, 0.5, 0)):
        right, asked = Count((0, 1, 2, 3)).compare(times, torch.tensor([[float(number), start, end, -1.0]]))
        assert right.item() and asked.item()
        wrong, _ = Count((0, 1, 2, 3)).compare(times, torch.tensor([[float(number + 1), start, end, -1.0]]))
        assert not wrong.item()
