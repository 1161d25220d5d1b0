"""Captions in everyday words, with genres, uses and more moods, each of which a track's attributes make true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from musiccm.data.demo.captions import BRIGHT_MODES, NAMES
from musiccm.data.demo.world import Attributes

#: Captions of a track.
PARAPHRASES = 4


@dataclass(frozen=True)
class Phrase:
    """Words, and the tracks that they are true of.

    Args:
        text: The words; {x} is the instrument.
        holds: By group of `Attributes.labels`, and `mood` (major or minor by its third): the values that it may have.
        bpm: The lowest and the highest tempo.
    """

    text: str
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bpm: tuple[int, int] = (0, 999)

    def true_of(self, attributes: Attributes) -> bool:
        """Whether a track is what the words say."""
        labels = {**attributes.labels(), "mood": BRIGHT_MODES[attributes.mode]}
        return self.bpm[0] <= attributes.bpm <= self.bpm[1] and all(
            labels[group] in values for group, values in self.holds.items())


_QUIET = ("none", "soft")
_ALONE = ("solo", "chords", "arpeggio")
_SYNTHS = ("synth lead", "synth pad")
_ORCHESTRAL = ("piano", "strings", "flute", "clarinet")

#: Nouns that take an article.
GENRES = (
    Phrase("lullaby", {"tempo": ("slow",), "drums": ("none",), "mood": ("major",), "register": ("middle", "high"),
                       "instrument": ("bells", "marimba", "piano", "flute", "guitar")}),
    Phrase("music box tune", {"instrument": ("bells",), "texture": ("solo", "arpeggio"), "drums": ("none",),
                              "register": ("high",)}),
    Phrase("waltz", {"metre": ("3/4",)}),
    Phrase("slow waltz", {"metre": ("3/4",), "tempo": ("slow",)}),
    Phrase("rock ballad", {"drums": ("rock",), "tempo": ("slow",), "texture": ("band",)}),
    Phrase("rock song without singing", {"drums": ("rock",), "texture": ("band",), "tempo": ("medium", "fast")}),
    Phrase("guitar rock riff", {"drums": ("rock",), "instrument": ("guitar",), "texture": ("chords", "arpeggio"),
                                "tempo": ("medium", "fast")}),
    Phrase("dance track", {"drums": ("dance",), "tempo": ("medium", "fast")}),
    Phrase("club track", {"drums": ("dance",), "tempo": ("fast",), "instrument": _SYNTHS}),
    Phrase("house track", {"drums": ("dance",), "instrument": _SYNTHS}, bpm=(115, 130)),
    Phrase("synth-pop instrumental", {"drums": ("dance", "rock"), "instrument": ("synth lead",), "texture": ("band",),
                                      "mood": ("major",), "tempo": ("medium", "fast")}),
    Phrase("folk tune", {"drums": _QUIET, "instrument": ("guitar", "flute"), "texture": ("solo", "band"),
                         "backing": ("none", "guitar", "strings")}),
    Phrase("classical piece", {"drums": ("none",), "instrument": _ORCHESTRAL, "texture": _ALONE}),
    Phrase("nocturne", {"drums": ("none",), "instrument": ("piano",), "tempo": ("slow",), "mood": ("minor",),
                        "texture": _ALONE}),
    Phrase("hymn", {"drums": ("none",), "instrument": ("organ",), "texture": ("chords",), "tempo": ("slow", "medium")}),
    Phrase("ballad", {"tempo": ("slow",), "drums": _QUIET, "texture": ("band",)}),
    Phrase("lament", {"tempo": ("slow",), "mood": ("minor",), "drums": ("none",)}),
    Phrase("ambient piece", {"drums": ("none",), "instrument": ("synth pad",), "tempo": ("slow",)}),
    Phrase("electronic piece", {"instrument": _SYNTHS}),
    Phrase("acoustic piece", {"instrument": ("piano", "guitar", "strings", "flute", "clarinet", "marimba", "bells"),
                              "texture": _ALONE, "drums": ("none",)}),
)
#: What music is for.
USES = (
    Phrase("music to fall asleep to", {"tempo": ("slow",), "drums": ("none",), "mood": ("major",)}),
    Phrase("bedtime music", {"tempo": ("slow",), "drums": ("none",), "mood": ("major",), "instrument":
                             ("bells", "marimba", "piano", "flute", "guitar", "synth pad")}),
    Phrase("relaxation music", {"tempo": ("slow",), "drums": ("none",), "mood": ("major",)}),
    Phrase("meditation music", {"tempo": ("slow",), "drums": ("none",), "instrument": ("synth pad", "flute", "bells")}),
    Phrase("music to dance to", {"drums": ("dance",), "tempo": ("medium", "fast")}),
    Phrase("party music", {"drums": ("dance",), "tempo": ("fast",), "mood": ("major",)}),
    Phrase("workout music", {"drums": ("dance", "rock"), "tempo": ("fast",)}),
    Phrase("music for a sad scene", {"tempo": ("slow",), "mood": ("minor",), "drums": _QUIET}),
    Phrase("music for a chase", {"tempo": ("fast",), "mood": ("minor",), "drums": ("rock", "dance")}),
    Phrase("music for a sunny morning", {"tempo": ("medium",), "mood": ("major",), "drums": _QUIET}),
    Phrase("music for a church", {"instrument": ("organ",), "drums": ("none",), "tempo": ("slow", "medium")}),
)
_MOODS = {
    ("major", "slow"): ("tender", "soothing", "relaxing", "serene", "dreamy"),
    ("major", "medium"): ("friendly", "easy-going", "sunny", "pretty"),
    ("major", "fast"): ("lively", "playful", "carefree", "energetic"),
    ("minor", "slow"): ("sorrowful", "gloomy", "mournful", "lonely"),
    ("minor", "medium"): ("pensive", "thoughtful", "brooding", "serious"),
    ("minor", "fast"): ("urgent", "agitated", "nervous", "dramatic"),
}
#: Adjectives.
MOODS = (
    *(Phrase(word, {"mood": (mood,), "tempo": (tempo,)}) for (mood, tempo), words in _MOODS.items() for word in words),
    Phrase("dark", {"mood": ("minor",), "register": ("low",)}),
    Phrase("bright", {"mood": ("major",), "register": ("high",)}),
    Phrase("minor-key", {"mode": ("minor",)}),
    Phrase("major-key", {"mode": ("major",)}),
)
#: Who plays, and how.
PLAYERS = (
    Phrase("just {x} and nothing else", {"texture": _ALONE, "drums": ("none",)}),
    Phrase("only {x}", {"texture": _ALONE, "drums": ("none",)}),
    Phrase("{x} all alone", {"texture": ("solo",), "drums": ("none",)}),
    Phrase("{x} tune", {"texture": ("solo", "band")}),
    Phrase("{x} playing one note at a time", {"texture": ("solo",)}),
    Phrase("{x} with several notes at once", {"texture": ("chords",)}),
    Phrase("rippling {x}", {"texture": ("arpeggio",)}),
    Phrase("{x} notes going up and down", {"texture": ("arpeggio",)}),
    Phrase("{x} with a band behind it", {"texture": ("band",)}),
    Phrase("a small group led by {x}", {"texture": ("band",)}),
    Phrase("fingerpicked guitar", {"instrument": ("guitar",), "texture": ("arpeggio",)}),
)
#: What the drums do.
BEATS = (
    Phrase("nobody on drums", {"drums": ("none",)}),
    Phrase("no beat at all", {"drums": ("none",)}),
    Phrase("quiet percussion", {"drums": ("soft",)}),
    Phrase("a bit of shaker", {"drums": ("soft",)}),
    Phrase("a drummer playing a rock groove", {"drums": ("rock",)}),
    Phrase("a kick on every beat", {"drums": ("dance",)}),
    Phrase("club drums", {"drums": ("dance",)}),
)
#: How fast it is.
PACES = (
    Phrase("taking its time", {"tempo": ("slow",)}),
    Phrase("not in a hurry", {"tempo": ("slow",)}),
    Phrase("at a walking pace", {"tempo": ("medium",)}),
    Phrase("at an easy pace", {"tempo": ("medium",)}),
    Phrase("at a brisk pace", {"tempo": ("fast",)}),
    Phrase("racing along", {"tempo": ("fast",)}),
)
#: How high it lies.
PLACES = (
    Phrase("down low", {"register": ("low",)}),
    Phrase("neither high nor low", {"register": ("middle",)}),
    Phrase("up high", {"register": ("high",)}),
)
_GENRE_FORMS = ("{genre} on {x}", "{mood} {genre} for {x}", "{genre}, {pace}", "{mood} {genre}, {player}", "{genre}")
_USE_FORMS = ("{use} with {x}", "{use}: {player}, {pace}", "{mood} {use}", "{use}")
_PLAIN_FORMS = ("{player}, {pace}, {beat}", "{mood} {x}", "{mood} music with {x} and {beat}", "{player}, {place}",
                "something {mood} with {x}", "{x}, {beat}, {pace}")


def paraphrases(attributes: Attributes, rng: np.random.Generator) -> list[str]:
    """Captions in everyday words.

    Args:
        attributes: The track.
        rng: What draws among the wordings; not the one that composes.

    Returns:
        `PARAPHRASES` sentences in lower case without a final stop: one with a genre and one with a use, where there is
        a true one, and others.
    """
    found = []
    for forms, needed in ((_GENRE_FORMS, GENRES), (_USE_FORMS, USES)):
        if any(phrase.true_of(attributes) for phrase in needed):
            found.append(_filled(forms, attributes, rng))
    while len(found) < PARAPHRASES:
        found.append(_filled(_PLAIN_FORMS, attributes, rng))
    return found


def _filled(forms: tuple[str, ...], attributes: Attributes, rng: np.random.Generator) -> str:
    def one(phrases: tuple[Phrase, ...]) -> str:
        true = [phrase.text for phrase in phrases if phrase.true_of(attributes)]
        return _pick(rng, tuple(true)).format(x=_pick(rng, NAMES[attributes.instrument])) if true else ""

    said = {"genre": one(GENRES), "use": one(USES), "mood": one(MOODS), "player": one(PLAYERS), "beat": one(BEATS),
            "pace": one(PACES), "place": one(PLACES), "x": _pick(rng, NAMES[attributes.instrument])}
    return _pick(rng, forms).format(**said)


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
