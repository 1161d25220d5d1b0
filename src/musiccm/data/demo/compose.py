"""Turn attributes into notes: progressions with voice leading, melody over harmony, bass, accompaniment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from musiccm.data.demo.world import MODES, Attributes


@dataclass(frozen=True)
class Note:
    """One note: MIDI pitch, start and length in beats, velocity in 0..1."""

    part: str
    pitch: int
    start: float
    length: float
    velocity: float


#: Four-bar progressions as scale degrees (0 is the tonic), by mode.
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 1, 4, 0), (5, 3, 0, 4), (0, 2, 3, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 3, 6, 2), (0, 5, 3, 4), (0, 2, 5, 4)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 1, 3, 0), (0, 3, 6, 0)),
    "mixolydian": ((0, 6, 3, 0), (0, 3, 6, 0), (0, 6, 0, 3), (0, 4, 3, 0)),
}

#: Melody rhythms as (start, length) in beats, by beats in a bar.
RHYTHMS = {
    4: (
        ((0, 1), (1, 1), (2, 1), (3, 1)),
        ((0, 1), (1, 0.5), (1.5, 0.5), (2, 2)),
        ((0, 1.5), (1.5, 0.5), (2, 1), (3, 1)),
        ((0, 0.5), (0.5, 0.5), (1, 1), (2, 0.5), (2.5, 0.5), (3, 1)),
        ((0, 2), (2, 1), (3, 0.5), (3.5, 0.5)),
        ((0, 1), (1, 1), (2, 1.5), (3.5, 0.5)),
    ),
    3: (
        ((0, 1), (1, 1), (2, 1)),
        ((0, 2), (2, 1)),
        ((0, 1.5), (1.5, 0.5), (2, 1)),
        ((0, 1), (1, 0.5), (1.5, 0.5), (2, 1)),
    ),
}

#: The bar of a phrase that each of its four bars takes its rhythm from: A B A C.
FORM = (0, 1, 0, 2)

MELODY_CENTRE = {"low": 53, "middle": 65, "high": 77}
CHORD_CENTRE = {"low": 48, "middle": 60, "high": 72}
BASS_LOWEST = 31
BACKING_CENTRE = 56
CHORD_STABS = {4: ((0, 2), (2, 2)), 3: ((0, 1), (1, 1), (2, 1))}
ARPEGGIOS = ((0, 1, 2, 1), (0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 2), (0, 2, 3, 2))


def chord_pitch_classes(root: int, mode: str, degree: int) -> tuple[int, ...]:
    """The triad on a scale degree, as pitch classes."""
    scale = MODES[mode]
    return tuple((root + scale[(degree + step) % 7]) % 12 for step in (0, 2, 4))


def lead_voices(pitch_classes: tuple[int, ...], previous: tuple[int, ...] | None, centre: int) -> tuple[int, ...]:
    """Close voicing of a triad that moves the voices least from `previous`, near `centre` (MIDI)."""
    candidates = []
    for rotation in range(3):
        classes = pitch_classes[rotation:] + pitch_classes[:rotation]
        for lowest in range(centre - 10, centre + 6):
            if lowest % 12 != classes[0]:
                continue
            voicing = [lowest]
            for pitch_class in classes[1:]:
                voicing.append(voicing[-1] + (pitch_class - voicing[-1]) % 12)
            candidates.append(tuple(voicing))

    def cost(voicing: tuple[int, ...]) -> float:
        drift = abs(sum(voicing) / 3 - centre)
        if previous is None:
            return drift
        return sum(abs(a - b) for a, b in zip(voicing, previous, strict=True)) + 0.2 * drift

    return min(candidates, key=cost)


def _melody(attributes: Attributes, rng: np.random.Generator, degrees: list[int], part: str) -> list[Note]:
    beats, centre = attributes.beats_per_bar, MELODY_CENTRE[attributes.register]
    scale = [p for p in range(centre - 8, centre + 10) if (p - attributes.root) % 12 in MODES[attributes.mode]]
    rhythms = [RHYTHMS[beats][i] for i in rng.integers(len(RHYTHMS[beats]), size=3)]
    contour = rng.integers(-2, 3, size=(3, 8))
    position, notes = len(scale) // 2, []
    for bar, degree in enumerate(degrees):
        chord = chord_pitch_classes(attributes.root, attributes.mode, degree)
        motif = FORM[bar % 4]
        rhythm = rhythms[motif] if bar % 4 < 3 else rhythms[motif][:-1]
        for step, (start, length) in enumerate(rhythm):
            position = int(np.clip(position + contour[motif, step % 8], 0, len(scale) - 1))
            if start == int(start) and int(start) % 2 == 0:
                tones = [i for i, pitch in enumerate(scale) if pitch % 12 in chord]
                position = min(tones, key=lambda i: abs(i - position))
            if bar % 4 == 3 and step == len(rhythm) - 1:
                length = beats - start
            accent = 0.78 if start == 0 else 0.62
            notes.append(Note(part, scale[position], bar * beats + start, length * 0.95, accent))
    return notes


def _voicings(attributes: Attributes, degrees: list[int], centre: int) -> list[tuple[int, ...]]:
    voicings: list[tuple[int, ...]] = []
    for degree in degrees:
        chord = chord_pitch_classes(attributes.root, attributes.mode, degree)
        voicings.append(lead_voices(chord, voicings[-1] if voicings else None, centre))
    return voicings


def _chords(attributes: Attributes, degrees: list[int], part: str, centre: int, held: bool) -> list[Note]:
    beats = attributes.beats_per_bar
    stabs = ((0, beats),) if held else CHORD_STABS[beats]
    return [
        Note(part, pitch, bar * beats + start, length * 0.96, 0.62 if start == 0 else 0.5)
        for bar, voicing in enumerate(_voicings(attributes, degrees, centre))
        for start, length in stabs
        for pitch in voicing
    ]


def _arpeggio(attributes: Attributes, rng: np.random.Generator, degrees: list[int], part: str) -> list[Note]:
    beats = attributes.beats_per_bar
    pattern, notes = ARPEGGIOS[int(rng.integers(len(ARPEGGIOS)))], []
    for bar, voicing in enumerate(_voicings(attributes, degrees, CHORD_CENTRE[attributes.register])):
        tones = (*voicing, voicing[0] + 12)
        for step in range(2 * beats):
            velocity = 0.74 if step == 0 else 0.56
            notes.append(Note(part, tones[pattern[step % 4]], bar * beats + step / 2, 0.55, velocity))
    return notes


def _bass(attributes: Attributes, rng: np.random.Generator, degrees: list[int]) -> list[Note]:
    beats = attributes.beats_per_bar
    walking = bool(rng.integers(2))
    notes = []
    for bar, degree in enumerate(degrees):
        pitch_class = chord_pitch_classes(attributes.root, attributes.mode, degree)[0]
        root = BASS_LOWEST + (pitch_class - BASS_LOWEST) % 12
        hits = tuple((b, 7 if b == beats - 1 else 0) for b in range(beats)) if walking else ((0, 0), (2, 7))
        for start, interval in hits:
            notes.append(Note("bass", root + interval, bar * beats + start, 0.9, 0.7))
    return notes


def compose(attributes: Attributes, rng: np.random.Generator, duration_s: float) -> list[Note]:
    """Compose a track.

    Args:
        attributes: what to compose.
        rng: the track's generator.
        duration_s: seconds to fill; bars are added until it is.

    Returns:
        Notes of the parts "lead", "backing" and "bass"; drums are patterns (drums.py), not notes.
    """
    bars = math.ceil(duration_s * attributes.bpm / 60 / attributes.beats_per_bar)
    progressions = PROGRESSIONS[attributes.mode]
    progression = progressions[int(rng.integers(len(progressions)))]
    degrees = [progression[bar % 4] for bar in range(bars)]
    if attributes.texture == "solo":
        return _melody(attributes, rng, degrees, "lead")
    if attributes.texture == "chords":
        return _chords(attributes, degrees, "lead", CHORD_CENTRE[attributes.register], held=False)
    if attributes.texture == "arpeggio":
        return _arpeggio(attributes, rng, degrees, "lead")
    backing = _chords(attributes, degrees, "backing", BACKING_CENTRE, held=True)
    return _melody(attributes, rng, degrees, "lead") + backing + _bass(attributes, rng, degrees)
