"""Captions in varied natural wording, and tags, from a track's attributes."""

from __future__ import annotations

import numpy as np

from musiccm.data.demo.world import Attributes

NAMES = {
    "piano": ("piano", "grand piano"),
    "guitar": ("guitar", "acoustic guitar", "plucked guitar"),
    "strings": ("strings", "bowed strings", "violin section"),
    "flute": ("flute", "wooden flute"),
    "clarinet": ("clarinet",),
    "organ": ("organ", "drawbar organ"),
    "marimba": ("marimba", "wooden mallets"),
    "bells": ("bells", "chimes"),
    "synth lead": ("synth lead", "lead synthesizer"),
    "synth pad": ("synth pad", "warm synthesizer pad"),
}
MOODS = {
    ("major", "slow"): ("calm", "peaceful", "gentle"),
    ("major", "medium"): ("warm", "pleasant", "hopeful"),
    ("major", "fast"): ("cheerful", "happy", "joyful"),
    ("minor", "slow"): ("sad", "melancholic", "sombre"),
    ("minor", "medium"): ("wistful", "moody", "reflective"),
    ("minor", "fast"): ("tense", "driving", "restless"),
}
BRIGHT_MODES = {"major": "major", "mixolydian": "major", "minor": "minor", "dorian": "minor"}
TEMPO_WORDS = {"slow": ("slow", "unhurried"), "medium": ("moderate", "mid-tempo"), "fast": ("fast", "quick", "upbeat")}
DRUM_WORDS = {
    "none": ("no drums", "without drums", "no percussion"),
    "soft": ("soft percussion", "a shaker and rim clicks", "light percussion"),
    "rock": ("a rock beat", "rock drums", "a backbeat drum kit"),
    "dance": ("a dance beat", "a four-on-the-floor beat", "dance drums"),
}
TEXTURE_WORDS = {
    "solo": ("{x} melody", "solo {x}", "{x} playing a single melody line"),
    "chords": ("{x} chords", "block chords on {x}", "{x} playing chords"),
    "arpeggio": ("{x} arpeggios", "arpeggiated {x}", "{x} playing broken chords"),
    "band": ("{x} melody over {y} and bass", "full band with {x} leading over {y}", "{x} melody over soft {y}"),
}
REGISTER_WORDS = {"low": ("low", "deep"), "middle": ("mid-range",), "high": ("high", "high-pitched")}
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def captions(attributes: Attributes, rng: np.random.Generator) -> list[str]:
    """Four captions; the first names every audible attribute, the later ones leave some out.

    Args:
        attributes: the track.
        rng: the track's generator.

    Returns:
        Sentences in lower case without a final stop.
    """
    mood = _pick(rng, MOODS[BRIGHT_MODES[attributes.mode], attributes.tempo])
    tempo = _pick(rng, TEMPO_WORDS[attributes.tempo])
    drums = _pick(rng, DRUM_WORDS[attributes.drums])
    register = _pick(rng, REGISTER_WORDS[attributes.register])

    def music() -> str:
        lead = _pick(rng, NAMES[attributes.instrument])
        backing = "" if attributes.backing == "none" else _pick(rng, NAMES[attributes.backing])
        return _pick(rng, TEXTURE_WORDS[attributes.texture]).format(x=lead, y=backing)

    key = f"{KEYS[attributes.root]} {attributes.mode}"
    waltz = "in three-four time" if attributes.metre == "3/4" else "in four-four time"
    joined = drums if attributes.drums == "none" else f"with {drums}"
    full = (
        f"{mood} {music()} in a {register} register, {joined}, {tempo} tempo, {attributes.bpm} bpm",
        f"{music()}, {register}, {drums}, {mood} and {tempo}, {attributes.bpm} bpm, {waltz}",
        f"{tempo} {mood} music: {music()} in the {register} register, {joined}, {attributes.bpm} bpm",
    )
    partial = (
        f"{mood} {music()}, {joined}",
        f"{music()} at {attributes.bpm} bpm",
        f"{tempo} {music()}",
        f"{mood} {music()}, {attributes.bpm} bpm",
    )
    return [
        _pick(rng, full),
        f"{music()}, {drums}, {tempo}, {register}, {key}, {attributes.bpm} bpm",
        _pick(rng, full),
        _pick(rng, partial),
    ]


def tags(attributes: Attributes) -> list[str]:
    """Tags as `group: value` for every audible attribute, and the instruments."""
    return [f"{group}: {value}" for group, value in attributes.labels().items()]
