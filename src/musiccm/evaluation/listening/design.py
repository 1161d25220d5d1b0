"""Which sounds meet on which page of a listening test, and what is asked there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.stimuli import Form, Item, Sound

KINDS = ("preference", "rating")
Role = Literal["pair", "clip", "same", "repeat", "anchor", "check"]
#: Ratings of MusicCM's table 4, as of AudioLDM's and MusicLDM's: from 1 to 100.
SCALE = (1, 100)

Question = dict[str, object]
#: By id. A choice is between the two sounds of a page, `tie` where that is an answer.
QUESTIONS: dict[str, Question] = {
    "prefer": {"kind": "choice", "text": "Which of the two do you prefer?", "tie": "No preference"},
    "text": {"kind": "choice", "text": "Which of the two fits the text better?", "tie": "Both equally"},
    "noise": {"kind": "choice", "text": "A check: which of the two has loud noise in it?", "tie": None},
    "ovl": {"kind": "rating", "text": "How good is the overall quality of this music?", "ends": ["bad", "excellent"]},
    "rel": {"kind": "rating", "text": "How well does this music fit the text?", "ends": ["not at all", "perfectly"]},
}


@dataclass(frozen=True)
class Trial:
    """One page: what it is for, the item, its one or two sounds, and the questions.

    Args:
        role: `pair` or `clip` is what is measured; `same` (one clip twice) and `repeat` (a clip once more), `anchor`
            (with or as a degraded copy) and `check` (an instructed choice) are there to know the listeners.
        item: The item's id.
        sounds: Two of a choice, one of a rating.
        ask: Ids of `QUESTIONS`.
        always: Whether every listener gets it; of the others each listener draws some items.
    """

    role: Role
    item: str
    sounds: tuple[Sound, ...]
    ask: tuple[str, ...]
    always: bool = False


@dataclass(frozen=True)
class Controls:
    """How many pages there are to know the listeners by: anchors, instructed checks, equal pairs or repeats."""

    anchors: int = 3
    checks: int = 3
    equal: int = 2
    anchor_form: Form = "lowpass"


def designed(
    kind: str, systems: Sequence[str], items: Sequence[Item], controls: Controls, generator: np.random.Generator,
    with_captions: bool, controls_of: str | None = None,
) -> list[Trial]:
    """All pages of a test, in a random order, with random sides; each listener has an order and sides of their own.

    Args:
        kind: `preference`: every pair of systems for every item; `rating`: every clip by itself.
        systems: Whose clips are compared.
        items: What all of them have made.
        controls: How many further pages.
        generator: Draws items and orders.
        with_captions: Whether listeners see the text, and are asked about it.
        controls_of: The system whose clips the controls are made of; all take turns if None.

    Returns:
        The pages.

    Raises:
        MusiccmError: The kind is unknown, or there are more controls of a sort than items.
    """
    if kind not in KINDS:
        raise MusiccmError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    for name in ("anchors", "checks", "equal"):
        if not 0 <= getattr(controls, name) <= len(items):
            raise MusiccmError(f"{name}: expected from 0 to {len(items)}, the number of clips of a system, found "
                               f"{getattr(controls, name)}")
    ids = [item.id for item in items]
    if kind == "preference":
        ask: tuple[str, ...] = ("prefer", "text") if with_captions else ("prefer",)
        trials = [Trial("pair", name, (Sound(first, name), Sound(second, name)), ask)
                  for name in ids for first, second in combinations(systems, 2)]
    else:
        ask = ("ovl", "rel") if with_captions else ("ovl",)
        trials = [Trial("clip", name, (Sound(system, name),), ask) for name in ids for system in systems]

    turn = 0

    def drawn(count: int) -> list[tuple[str, str]]:
        nonlocal turn
        found = []
        for place in generator.permutation(len(ids))[:count]:
            found.append((ids[place], controls_of or systems[turn % len(systems)]))
            turn += 1
        return found

    for name, system in drawn(controls.anchors):
        worse = Sound(system, name, controls.anchor_form)
        sounds = (Sound(system, name), worse) if kind == "preference" else (worse,)
        trials.append(Trial("anchor", name, sounds, ask, always=True))
    for name, system in drawn(controls.equal):
        if kind == "preference":
            trials.append(Trial("same", name, (Sound(system, name), Sound(system, name, copy=1)), ask, always=True))
        else:
            trials.append(Trial("repeat", name, (Sound(system, name, copy=1),), ask, always=True))
    for name, system in drawn(controls.checks):
        sounds = (Sound(system, name), Sound(system, name, "noise"))
        trials.append(Trial("check", name, sounds, ("noise",), always=True))
    return [trials[place] for place in generator.permutation(len(trials))]
