"""Texts along time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musiccm.errors import MusiccmError
from musiccm.long_form import PromptPlan, check_texts
from musiccm.long_form.prompts import PlannedCondition


@pytest.mark.parametrize("bad", [None, [], "", " \n", [""], ["a", None], [b"a"], b"a", 3, "a\udcff", "a\x00b"])
def test_no_descriptions(bad: object) -> None:
    with pytest.raises(MusiccmError, match="prompt"):
        check_texts(bad)  # type: ignore[arg-type]
    assert check_texts("ein ruhiges Stück ♫\n日本") == ["ein ruhiges Stück ♫\n日本"]


@pytest.mark.parametrize("bad", [[], None, [("a",)], ["ab"], [(1.0, "a")], [(0, "a"), (0, "b")], [(0, "a"), (-1, "b")],
                                 [(0, "a"), (float("nan"), "b")], [(0, "a"), (1e308, "b")], [(0, "a"), (10**400, "b")],
                                 [(0, "")], [("0", "a")], [(0, "a"), (True, "b")]])
def test_no_plans(bad: object) -> None:
    with pytest.raises(MusiccmError, match="prompt"):
        PromptPlan(bad)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.1, 100), unique=True, max_size=5), st.floats(0, 120))
def test_the_text_in_force_is_the_last_that_has_begun(changes: list[float], time_s: float) -> None:
    plan = PromptPlan([(0, "start"), *((change, f"from {change}") for change in sorted(changes))])
    begun = [change for change in changes if change <= time_s]
    expected = f"from {max(begun)}" if begun else "start"
    assert plan.entries[plan.index_at(time_s)][1] == expected


def test_a_change_replaces_what_was_planned() -> None:
    plan = PromptPlan([(0, "a"), (5, "b"), (9, "c")])
    plan.change(5, "d")
    assert plan.entries == [(0.0, "a"), (5, "d")]
    plan.change(0, "e")
    assert plan.entries == [(0, "e")]
    with pytest.raises(MusiccmError, match="prompt"):
        plan.change(3, "")


def test_a_text_that_no_window_hears_is_refused() -> None:
    plan = PromptPlan([(0, "a"), (5, "b"), (6, "c")])
    plan.require_used(range(3), [2.5, 5.5, 7.5].__getitem__)
    with pytest.raises(MusiccmError, match=r"'b' \(from 5 s\).*2.5, 7.5 s"):
        plan.require_used([0, 2], [2.5, 5.5, 7.5].__getitem__)


def test_a_text_that_begins_where_the_music_has_ended_is_refused() -> None:
    plan = PromptPlan([(0, "a"), (5, "b")])
    plan.require_within(5.01)
    with pytest.raises(MusiccmError, match=r"'b' \(from 5 s\) would not be used: the music ends at 5 s"):
        plan.require_within(5.0)


class Texts:
    """Stands for a conditioner; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prompts(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[float(ord(text[0]))] for text in texts])


def test_a_window_has_the_text_of_its_middle() -> None:
    texts = Texts()
    condition = PlannedCondition(PromptPlan([(0, "a"), (4.0, "b")]), texts, window_s=4.0, frame_s=0.5)
    assert [float(condition.at(start)) for start in (0, 3, 4, 9)] == [97, 97, 98, 98]
    assert texts.asked == ["a", "a", "b", "b"], "the conditioner remembers them"
