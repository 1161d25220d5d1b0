"""The attributes of the demo corpus, and how one track's attributes are drawn.

Every caption, tag and note of a track follows from one `Attributes`, so a tagger can check what a model was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INSTRUMENTS = (
    "piano", "guitar", "strings", "flute", "clarinet", "organ", "marimba", "bells", "synth lead", "synth pad",
)  # fmt: skip
BACKINGS = ("piano", "guitar", "strings", "organ", "synth pad")
DRUMS = ("none", "soft", "rock", "dance")
TEXTURES = ("solo", "chords", "arpeggio", "band")
REGISTERS = ("low", "middle", "high")
METRES = ("4/4", "3/4")
TEMPO_CLASSES = ("slow", "medium", "fast")
BPM_RANGE = (60, 160)
BPM_BORDERS = (88, 122)

#: Semitones of each mode's seven degrees.
MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}

#: Registers an instrument is written in; a flute has no low one.
PLAYABLE = {"flute": ("middle", "high"), "bells": ("middle", "high"), "synth pad": ("low", "middle")}


@dataclass(frozen=True)
class Attributes:
    """What one track is. `root` is a pitch class, 0 for C; `reverb` is the wet share."""

    instrument: str
    backing: str
    drums: str
    texture: str
    register: str
    metre: str
    mode: str
    root: int
    bpm: int
    reverb: float

    @property
    def tempo(self) -> str:
        """The tempo class: slow below 88 bpm, fast from 122 bpm."""
        return TEMPO_CLASSES[int(np.searchsorted(BPM_BORDERS, self.bpm, side="right"))]

    @property
    def beats_per_bar(self) -> int:
        """Beats in a bar of the metre."""
        return int(self.metre[0])

    def labels(self) -> dict[str, str]:
        """The audible attributes by group; a track without accompaniment has backing "none"."""
        return {
            "instrument": self.instrument,
            "drums": self.drums,
            "texture": self.texture,
            "tempo": self.tempo,
            "backing": self.backing,
            "register": self.register,
            "mode": self.mode,
            "metre": self.metre,
        }


def track_rng(seed: int, split: str, index: int, rendering: int = 0) -> np.random.Generator:
    """The random generator of one track, a function of its arguments alone; of its other renderings from 1 on."""
    place = [seed, {"train": 0, "test": 1, "validation": 2}[split], index]
    return np.random.default_rng([*place, rendering] if rendering else place)


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """Draw a track's attributes, independently of one another except where music forbids it."""
    instrument = str(rng.choice(INSTRUMENTS))
    texture = str(rng.choice(TEXTURES))
    backing = "none"
    if texture == "band":
        backing = str(rng.choice([name for name in BACKINGS if name != instrument]))
    drums = str(rng.choice(DRUMS))
    return Attributes(
        instrument=instrument,
        backing=backing,
        drums=drums,
        texture=texture,
        register=str(rng.choice(PLAYABLE.get(instrument, REGISTERS))),
        metre="4/4" if drums in ("rock", "dance") else str(rng.choice(METRES, p=(0.7, 0.3))),
        mode=str(rng.choice(list(MODES), p=(0.4, 0.4, 0.1, 0.1))),
        root=int(rng.integers(12)),
        bpm=int(rng.integers(BPM_RANGE[0], BPM_RANGE[1] + 1)),
        reverb=float(rng.uniform(0.05, 0.2)),
    )
