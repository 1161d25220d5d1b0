"""What one clip tells: one to three events, how they lie in time, and the tempo that all of them keep.

Captions, sound and labels follow from one `Scene`, so that code can check what a model was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from musiccm.data.demo.world import BPM_BORDERS, MODES, PLAYABLE, TEMPO_CLASSES

DURATION_S = 5.12
#: The synth pad of the other world swells for 0.4 s: no beat is clear in it.
INSTRUMENTS = ("piano", "guitar", "strings", "flute", "clarinet", "organ", "marimba", "bells", "synth lead")
#: Whose single notes begin clearly enough to be counted.
STRUCK = ("piano", "guitar", "marimba", "bells")
DRUMS = ("soft", "rock", "dance")
KINDS = ("melody", "strokes", "drums")
MOST_STROKES = 5
BPM_RANGE = (66, 160)
#: Where the first beat falls: an onset at the very first sample has no silence before it.
LEAD_IN_S = 0.06
#: Strokes follow each other by one beat, or by two where that is less than this.
LEAST_STROKE_S = 0.42
#: What a section still needs behind the beginning of its last stroke.
LAST_STROKE_S = 0.45

#: How often each form is drawn. By section, the places of the events that sound in it, of those that the caption tells.
FORMS: Mapping[str, tuple[float, tuple[tuple[int, ...], ...]]] = {
    "alone": (0.16, ((0,),)),
    "together": (0.12, ((0, 1),)),
    "joins": (0.14, ((0,), (0, 1))),
    "leaves": (0.10, ((0, 1), (0,))),
    "then": (0.24, ((0,), (1,))),
    "then_three": (0.12, ((0,), (1,), (2,))),
    "then_with": (0.12, ((0,), (1, 2))),
}
#: Forms that say something else when their two events, or the first and the last of three, change places.
ORDERED = ("joins", "leaves", "then", "then_three")
SPLITS = {"train": 0, "test": 1, "validation": 2}
#: Keeps the draws of this world apart from those of the other.
_WORLD = 5


@dataclass(frozen=True)
class Event:
    """Something that sounds.

    Args:
        kind: `melody` and `strokes` of an instrument, or `drums`.
        sound: The instrument, or the style of the drums.
        count: How many strokes; 0 for the other kinds.
    """

    kind: str
    sound: str
    count: int = 0

    @property
    def name(self) -> str:
        """What sounds, in one word or two: `flute`, `rock drums`."""
        return f"{self.sound} drums" if self.kind == "drums" else self.sound


@dataclass(frozen=True)
class Scene:
    """What one clip is.

    Args:
        form: How the events lie in time, a key of `FORMS`.
        events: What the caption tells, in the order of the form.
        bpm: The tempo of all events.
        register: Where melodies lie; unsaid, as are the next three.
        mode: Of the scale.
        root: A pitch class, 0 for C.
        reverb: The wet share.
    """

    form: str
    events: tuple[Event, ...]
    bpm: int
    register: str
    mode: str
    root: int
    reverb: float

    @property
    def sections(self) -> tuple[tuple[Event, ...], ...]:
        """The events that sound together, section after section."""
        return tuple(tuple(self.events[place] for place in places) for places in FORMS[self.form][1])

    @property
    def has_tempo(self) -> bool:
        """Whether there is a tempo to find: strokes alone have none."""
        return any(event.kind != "strokes" for event in self.events)

    @property
    def tempo(self) -> str:
        """The tempo class, with the borders of the other world."""
        return TEMPO_CLASSES[int(np.searchsorted(BPM_BORDERS, self.bpm, side="right"))]

    @property
    def count(self) -> int:
        """How many strokes there are; 0 without any."""
        return sum(event.count for event in self.events)

    def borders_s(self) -> list[float]:
        """When the sections begin, and the end of the last: the beats nearest to equal parts of the clip."""
        return borders_s(self.bpm, len(self.sections))

    def twin(self) -> Scene | None:
        """The scene that the same words tell in another order; None where the order says nothing.

        Notes, room and tempo are as they were.
        """
        if self.form not in ORDERED or self.events[0] == self.events[-1]:
            return None
        first, *between, last = self.events
        return replace(self, events=(last, *between, first))

    def labels(self) -> dict[str, str]:
        """What can be found in the sound, by group; a group that does not apply is left out.

        `order` has what sounds in each section, `flute > flute + rock drums`, wherever there is more than one;
        `strokes_s` when the section with the strokes begins and ends.
        """
        found = {"form": self.form, "sounds": _told((self.events,))}
        if len(self.sections) > 1:
            found["order"] = _told(self.sections)
        if self.count:
            found["count"] = str(self.count)
            place = self._place_of_strokes()
            start_s, end_s = self.borders_s()[place:place + 2]
            found["strokes_s"] = f"{start_s:.2f} {end_s:.2f}"
        if self.has_tempo:
            found |= {"tempo": self.tempo, "tempo_bpm": str(self.bpm)}
        return found

    def _place_of_strokes(self) -> int:
        return next(place for place, events in enumerate(self.sections) if any(event.count for event in events))


def _told(sections: tuple[tuple[Event, ...], ...]) -> str:
    return " > ".join(" + ".join(sorted(event.name for event in events)) for events in sections)


def borders_s(bpm: int, sections: int) -> list[float]:
    """When sections begin, and the end of the last.

    Args:
        bpm: Beats a minute.
        sections: How many.

    Returns:
        Seconds from the beginning of the clip, one more than there are sections.
    """
    beat_s = 60 / bpm
    inner = [LEAD_IN_S + beat_s * round((DURATION_S * place / sections - LEAD_IN_S) / beat_s)
             for place in range(1, sections)]
    return [LEAD_IN_S, *inner, DURATION_S]


def stroke_s(bpm: int) -> float:
    """Seconds from one stroke to the next: they keep to the beat."""
    beat_s = 60 / bpm
    return beat_s if beat_s >= LEAST_STROKE_S else 2 * beat_s


def scene_rng(seed: int, split: str, index: int, *purpose: int) -> np.random.Generator:
    """A random generator of one clip, a function of its arguments alone.

    Args:
        seed: Of the corpus.
        split: Of the clip.
        index: Of the clip.
        *purpose: What is drawn: other numbers, other draws.
    """
    return np.random.default_rng([_WORLD, seed, SPLITS[split], index, *purpose])


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: form, events that it can have, tempo, and what captions leave unsaid."""
    form = str(rng.choice(list(FORMS), p=[share for share, _ in FORMS.values()]))
    bpm = int(rng.integers(BPM_RANGE[0], BPM_RANGE[1] + 1))
    events = _draw_events(rng, form, bpm)
    register = str(rng.choice(("middle", "high")))
    if any(event.sound in PLAYABLE and register not in PLAYABLE[event.sound] for event in events):
        register = "middle"
    return Scene(form, events, bpm, register, str(rng.choice(list(MODES), p=(0.4, 0.4, 0.1, 0.1))),
                 int(rng.integers(12)), float(rng.uniform(0.05, 0.2)))


def _draw_events(rng: np.random.Generator, form: str, bpm: int) -> tuple[Event, ...]:
    melody = Event("melody", str(rng.choice(INSTRUMENTS)))
    drums = Event("drums", str(rng.choice(DRUMS)))
    if form == "alone":
        return (_one(rng, bpm, 1, (0.5, 0.35, 0.15)),)
    if form in ("together", "joins", "leaves"):
        return (melody, drums) if form == "together" or rng.random() < 0.6 else (drums, melody)
    if form == "then_with":
        other = _one(rng, bpm, 2, (0.5, 0.5, 0.0))
        while other.sound == melody.sound:
            other = _one(rng, bpm, 2, (0.5, 0.5, 0.0))
        return (other, melody, drums)
    count = len(FORMS[form][1])
    told: list[Event] = []
    while len(told) < count:
        event = _one(rng, bpm, count, (0.5, 0.3, 0.2))
        alike = [other for other in told if other.sound == event.sound or other.kind == event.kind != "melody"]
        if not alike:
            told.append(event)
    return tuple(told)


def _one(rng: np.random.Generator, bpm: int, sections: int, shares: tuple[float, float, float]) -> Event:
    """One event that fits into the shortest of so many sections."""
    kind = str(rng.choice(KINDS, p=shares))
    if kind == "melody":
        return Event(kind, str(rng.choice(INSTRUMENTS)))
    if kind == "drums":
        return Event(kind, str(rng.choice(DRUMS)))
    borders = borders_s(bpm, sections)
    shortest = min(end - start for start, end in zip(borders, borders[1:], strict=False))
    room = 1 + int((shortest - LAST_STROKE_S) / stroke_s(bpm))
    return Event(kind, str(rng.choice(STRUCK)), int(rng.integers(1, min(room, MOST_STROKES) + 1)))
