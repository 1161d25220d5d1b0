"""The worlds that a demo corpus can be of: what writes, reads and renders one knows them by name alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from musiccm.data.demo import tracks
from musiccm.data.demo.captions import tags
from musiccm.data.demo.events.tracks import make_event_track, other_event_rendering
from musiccm.data.demo.events.world import BPM_RANGE, DRUMS, INSTRUMENTS, MOST_STROKES
from musiccm.data.demo.folder import COMPOSER_VERSION, EVENTS_VERSION, PARAPHRASED_VERSION
from musiccm.data.demo.paraphrases import paraphrases
from musiccm.data.demo.world import track_rng
from musiccm.errors import MusiccmError


@dataclass(frozen=True)
class Composed:
    """One track, ready to be written.

    Args:
        waveform_S: The sound, mono, at 16 kHz.
        texts: Captions; evaluation takes the first.
        tags: As `group: value`.
        facts: What else its label file states, `attributes` among it.
    """

    waveform_S: np.ndarray
    texts: list[str]
    tags: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class DemoWorld:
    """A world.

    Args:
        name: What the option `--world` and `corpus.json` call it.
        version: Raised whenever the same (seed, split, index) would sound or read differently.
        compose: `(seed, split, index)` to a track.
        other_rendering: `(seed, split, index, number)` to another sound for the same captions.
        asks: What its captions can ask for, in sentences for the cards of models.
    """

    name: str
    version: int
    compose: Callable[[int, str, int], Composed]
    other_rendering: Callable[[int, str, int, int], np.ndarray]
    asks: str

    def identity(self, seed: int) -> dict[str, Any]:
        """What `corpus.json` states of a corpus of this world; the first world has no name there."""
        return {"seed": seed, "composer_version": self.version, **({} if self.name == FIRST else {"world": self.name})}


def _music(seed: int, split: str, index: int) -> Composed:
    return _composed(tracks.make_track(seed, split, index))


def _composed(track: tracks.Track) -> Composed:
    attributes = track.attributes
    facts = {"title": track.texts[-1], "bpm": attributes.bpm, "root": attributes.root,
             "attributes": attributes.labels()}
    return Composed(track.waveform_S, track.texts, tags(attributes), facts)


def _paraphrased(seed: int, split: str, index: int) -> Composed:
    track = tracks.make_track(seed, split, index)
    plain = _composed(track)
    # A generator apart from that of notes and room: the music stays what it is in the first world.
    drawn = paraphrases(track.attributes, track_rng(seed, split, index, _WORDING))
    return replace(plain, texts=[*plain.texts, *drawn])


def _events(seed: int, split: str, index: int) -> Composed:
    track = make_event_track(seed, split, index)
    labels = track.scene.labels()
    facts = {
        "title": track.sentences[-1].text, "bpm": track.scene.bpm, "root": track.scene.root, "attributes": labels,
        "events": [vars(event) for event in track.scene.events],
        **({} if track.twin is None else {"twin": f"{split}_{track.twin:06d}"}),
    }
    texts = [sentence.text for sentence in track.sentences]
    return Composed(track.waveform_S, texts, [f"{group}: {value}" for group, value in labels.items()], facts)


FIRST = "music"
#: The first world's music under captions of everyday words too: what text towers are trained on.
PARAPHRASED = "music_paraphrased"
#: Where the wording of a track is drawn: no other rendering has this number.
_WORDING = 1_000_003
_ASKS = "Captions name some of instrument, backing, drums, texture, register, metre, mode and tempo class"
WORLDS: Mapping[str, DemoWorld] = {world.name: world for world in (
    DemoWorld(FIRST, COMPOSER_VERSION, _music, tracks.other_rendering,
              f"{_ASKS}."),
    DemoWorld(PARAPHRASED, PARAPHRASED_VERSION, _paraphrased, tracks.other_rendering,
              f"{_ASKS}, also in everyday words, as genres, uses and moods."),
    DemoWorld("events", EVENTS_VERSION, _events, other_event_rendering,
              f"Captions tell one to three events: melodies or one to {MOST_STROKES} strokes of {len(INSTRUMENTS)} "
              f"instruments ({', '.join(INSTRUMENTS)}), and drums ({', '.join(DRUMS)}); alone, together, one after the "
              "other, joining or leaving; and the tempo, as a word or in beats a minute "
              f"({BPM_RANGE[0]} to {BPM_RANGE[1]})."),
)}


def demo_world(name: str) -> DemoWorld:
    """A world by its name.

    Raises:
        MusiccmError: There is none of this name.
    """
    if name not in WORLDS:
        raise MusiccmError(f"data.demo_world: expected one of {', '.join(WORLDS)}, found {name!r}")
    return WORLDS[name]


def world_of(stated: Mapping[str, Any]) -> DemoWorld | None:
    """The world that a `corpus.json` states; None where this version composes no such corpus."""
    world = WORLDS.get(stated.get("world", FIRST))
    return world if world is not None and stated.get("composer_version") == world.version else None
