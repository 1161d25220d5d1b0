"""One clip of the world of events: its scene, its words and its sound, whatever layout it is written in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musiccm.data.demo.events.music import render
from musiccm.data.demo.events.wording import Sentence, sentences
from musiccm.data.demo.events.world import Scene, draw_scene, scene_rng


@dataclass(frozen=True)
class EventTrack:
    """What one clip is.

    Args:
        scene: What was played.
        sentences: Captions.
        waveform_S: The sound, mono, at 16 kHz.
        twin: The index of the clip that the same words in another order tell of; None without one.
    """

    scene: Scene
    sentences: list[Sentence]
    waveform_S: np.ndarray
    twin: int | None


def scene_of(seed: int, split: str, index: int) -> tuple[Scene, int | None]:
    """The scene of a clip, and the index of its twin.

    Clips 2n and 2n + 1 are twins, where the order of the events of the first says anything; else they have nothing to
    do with each other.

    Args:
        seed: Of the corpus.
        split: Of the clip.
        index: Of the clip.

    Returns:
        Both; None for a clip without a twin.
    """
    first = draw_scene(scene_rng(seed, split, index - index % 2, 0))
    twin = first.twin()
    if twin is not None:
        return (first, index + 1) if index % 2 == 0 else (twin, index - 1)
    return (first if index % 2 == 0 else draw_scene(scene_rng(seed, split, index, 0))), None


def words_of(seed: int, split: str, index: int) -> tuple[Scene, list[Sentence]]:
    """A clip's scene and captions, a function of (seed, split, index) alone; without the sound they take no time."""
    scene, twin = scene_of(seed, split, index)
    return scene, sentences(scene, seed, split, index if twin is None else min(index, twin))


def make_event_track(seed: int, split: str, index: int) -> EventTrack:
    """Draw, word and play a clip, a function of (seed, split, index) alone."""
    scene, told = words_of(seed, split, index)
    return EventTrack(scene, told, other_event_rendering(seed, split, index, 0), scene_of(seed, split, index)[1])


def other_event_rendering(seed: int, split: str, index: int, number: int = 1) -> np.ndarray:
    """Another clip of the same scene, and so for the same captions: other notes, timing and room.

    Args:
        seed: Of the corpus.
        split: Of the clip.
        index: Of the clip.
        number: Which, from 1; 0 is the clip itself.

    Returns:
        The sound, mono, at 16 kHz.
    """
    return render(scene_of(seed, split, index)[0], scene_rng(seed, split, index, 2, number))
