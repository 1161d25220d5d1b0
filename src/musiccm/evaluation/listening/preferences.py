"""What a preference test says: wins, ties and losses of each pair of systems, question by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from musiccm.evaluation.listening.agreement import krippendorff_alpha
from musiccm.evaluation.listening.answers import Listener, chosen_file
from musiccm.evaluation.listening.proportions import share_of_wins
from musiccm.evaluation.listening.resampling import Resampling


class Vote(NamedTuple):
    """One answer about a pair: whose, of which item and systems, the winner (None: a tie), and was it shown first?"""

    listener: str
    item: str
    systems: frozenset[str]
    winner: str | None
    first: bool | None


def votes(listeners: Sequence[Listener], key: Mapping[str, Any], question: str) -> list[Vote]:
    """The answers to a question about pairs of systems."""
    found = []
    for listener in listeners:
        for answer in listener.answers:
            trial = key["trials"][answer.trial]
            if trial["role"] == "pair" and question in answer.answers:
                chosen = chosen_file(answer, question)
                found.append(Vote(
                    listener.name, trial["item"], frozenset(key["files"][name]["system"] for name in answer.files),
                    None if chosen is None else key["files"][chosen]["system"],
                    None if chosen is None else chosen == answer.files[0]))
    return found


def preference_rows(listeners: Sequence[Listener], key: Mapping[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each question and pair of systems.

    Args:
        listeners: Those whose answers count.
        key: Of the test.
        seed: Of the resampling.

    Returns:
        `question`, `first`, `second`, `wins`, `ties`, `losses` (of the first), `listeners`, `clips`, what
        `share_of_wins` gives, and `clustered_low`, `clustered_high`: the share's 95 % interval with listeners and clips
        resampled.
    """
    rows = []
    for question in key["questions"]:
        found = votes(listeners, key, question)
        for first, second in combinations(key["systems"], 2):
            own = [vote for vote in found if vote.systems == {first, second}]
            if own:
                rows.append({"question": question, "first": first, "second": second} | _counted(own, first, seed))
    return rows


def _counted(own: Sequence[Vote], first: str, seed: int) -> dict[str, Any]:
    decided = [vote for vote in own if vote.winner is not None]
    wins = sum(vote.winner == first for vote in decided)
    row = {"wins": wins, "ties": len(own) - len(decided), "losses": len(decided) - wins,
           "listeners": len({vote.listener for vote in own}), "clips": len({vote.item for vote in own})}
    row |= share_of_wins(wins, len(decided) - wins)
    low = high = None
    if row["share"] is not None:
        drawn = Resampling([vote.listener for vote in decided], [vote.item for vote in decided], seed)
        won = np.array([vote.winner == first for vote in decided], dtype=float)
        low, high = drawn.interval(won, np.ones(len(decided), dtype=bool))
    return row | {"clustered_low": low, "clustered_high": high}


def preference_checks(listeners: Sequence[Listener], key: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement by question, how often the sound shown first won, and what anchors and equal pairs came to."""
    found: dict[str, Any] = {"alpha": {}, "first_shown": {}}
    for question in key["questions"]:
        if question == "noise":
            continue
        own = votes(listeners, key, question)
        units: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
        for vote in own:
            units[vote.item, tuple(sorted(vote.systems))].append(vote.winner or "")
        found["alpha"][question] = krippendorff_alpha(units.values(), "nominal")
        sides = [vote.first for vote in own if vote.first is not None]
        found["first_shown"][question] = share_of_wins(sum(sides), len(sides) - sum(sides))
    counts = {"anchor": [0, 0], "same": [0, 0]}
    for listener in listeners:
        for answer in listener.answers:
            role = key["trials"][answer.trial]["role"]
            if role in counts:
                chosen = chosen_file(answer, "prefer")
                right = chosen is None if role == "same" else (
                    chosen is not None and key["files"][chosen]["form"] == "plain")
                counts[role][0] += right
                counts[role][1] += 1
    found["original_before_degraded"] = {"times": counts["anchor"][0], "of": counts["anchor"][1]}
    found["no_preference_for_equal"] = {"times": counts["same"][0], "of": counts["same"][1]}
    return found
