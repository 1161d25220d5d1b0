"""Captions in everyday words are true of their clips, and the clips are those of the first world."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from musiccm.config import PACKAGED, load_experiment
from musiccm.data.demo import paraphrases as module
from musiccm.data.demo.paraphrases import PARAPHRASES, Phrase, paraphrases
from musiccm.data.demo.world import MODES, Attributes, draw_attributes, track_rng
from musiccm.data.demo.worlds import PARAPHRASED, demo_world, world_of

PHRASES: tuple[Phrase, ...] = (*module.GENRES, *module.USES, *module.MOODS, *module.PLAYERS, *module.BEATS,
                               *module.PACES, *module.PLACES)


def major(a: Attributes) -> bool:
    return MODES[a.mode][2] == 4  # a major third above the tonic


def slow(a: Attributes) -> bool:
    return a.bpm < 88


def fast(a: Attributes) -> bool:
    return a.bpm >= 122


def medium(a: Attributes) -> bool:
    return not slow(a) and not fast(a)


def beatless(a: Attributes) -> bool:
    return a.drums == "none"


def loud(a: Attributes) -> bool:
    return a.drums in ("rock", "dance")


def synthetic(a: Attributes) -> bool:
    return a.instrument.startswith("synth")


def moody(is_major: bool, pace: Callable[[Attributes], bool]) -> Callable[[Attributes], bool]:
    return lambda a: major(a) == is_major and pace(a)


# What a listener takes a word to promise, in numbers of the track; written from the words, not from the composer.
PROMISES: dict[str, Callable[[Attributes], bool]] = {
    "lullaby": lambda a: slow(a) and beatless(a) and major(a) and a.register != "low" and not a.instrument.startswith(
        "synth") and a.instrument not in ("organ", "clarinet", "strings"),
    "music box": lambda a: a.instrument == "bells" and a.register == "high" and a.texture in ("solo", "arpeggio"),
    "waltz": lambda a: a.beats_per_bar == 3,
    "slow waltz": slow,
    "rock": lambda a: a.drums == "rock",
    "riff": lambda a: a.instrument == "guitar" and a.texture in ("chords", "arpeggio") and not slow(a),
    "song without singing": lambda a: a.texture == "band",
    "rock ballad": lambda a: slow(a) and a.texture == "band",
    "ballad": lambda a: slow(a) and a.drums != "dance",
    "dance track": lambda a: a.drums == "dance" and not slow(a),
    "club track": lambda a: a.drums == "dance" and fast(a) and synthetic(a),
    "house": lambda a: a.drums == "dance" and 110 <= a.bpm <= 130 and synthetic(a),
    "synth-pop": lambda a: loud(a) and a.instrument == "synth lead" and a.texture == "band",
    "folk": lambda a: not loud(a) and a.instrument in ("guitar", "flute") and a.backing not in ("synth pad", "organ"),
    "classical": lambda a: beatless(a) and not synthetic(a) and a.texture != "band",
    "nocturne": lambda a: a.instrument == "piano" and slow(a) and beatless(a),
    "hymn": lambda a: a.instrument == "organ" and a.texture == "chords" and not fast(a),
    "lament": lambda a: slow(a) and not major(a) and beatless(a),
    "ambient": lambda a: beatless(a) and slow(a) and synthetic(a),
    "electronic": synthetic,
    "acoustic piece": lambda a: not synthetic(a) and a.instrument != "organ" and a.backing == "none",
    "fall asleep": lambda a: slow(a) and beatless(a) and major(a),
    "bedtime": lambda a: slow(a) and beatless(a) and major(a) and a.instrument not in ("organ", "synth lead"),
    "relaxation": lambda a: slow(a) and beatless(a) and major(a),
    "meditation": lambda a: slow(a) and beatless(a),
    "music to dance to": lambda a: a.drums == "dance" and not slow(a),
    "party": lambda a: a.drums == "dance" and fast(a) and major(a),
    "workout": lambda a: loud(a) and fast(a),
    "sad scene": lambda a: slow(a) and not major(a) and not loud(a),
    "chase": lambda a: fast(a) and not major(a) and loud(a),
    "sunny": lambda a: medium(a) and major(a),
    "church": lambda a: a.instrument == "organ" and beatless(a),
    "dark": lambda a: not major(a) and a.register == "low",
    "bright": lambda a: major(a) and a.register == "high",
    "minor-key": lambda a: a.mode == "minor",
    "major-key": lambda a: a.mode == "major",
    "just": lambda a: a.backing == "none" and beatless(a),
    "only": lambda a: a.backing == "none" and beatless(a),
    "all alone": lambda a: a.texture == "solo" and beatless(a),
    "tune": lambda a: a.texture in ("solo", "band") or a.instrument == "bells",
    "one note at a time": lambda a: a.texture == "solo",
    "several notes at once": lambda a: a.texture == "chords",
    "rippling": lambda a: a.texture == "arpeggio",
    "going up and down": lambda a: a.texture == "arpeggio",
    "with a band behind it": lambda a: a.backing != "none",
    "small group": lambda a: a.backing != "none",
    "fingerpicked": lambda a: a.instrument == "guitar" and a.texture == "arpeggio",
    "nobody on drums": beatless, "no beat at all": beatless,
    "quiet percussion": lambda a: a.drums == "soft", "shaker": lambda a: a.drums == "soft",
    "rock groove": lambda a: a.drums == "rock",
    "kick on every beat": lambda a: a.drums == "dance" and a.metre == "4/4",
    "club drums": lambda a: a.drums == "dance",
    "taking its time": slow, "not in a hurry": slow, "walking pace": medium, "easy pace": medium,
    "brisk pace": fast, "racing along": fast,
    "down low": lambda a: a.register == "low", "neither high nor low": lambda a: a.register == "middle",
    "up high": lambda a: a.register == "high",
    **dict.fromkeys(("tender", "soothing", "relaxing", "serene", "dreamy"), moody(True, slow)),
    **dict.fromkeys(("friendly", "easy-going", "pretty"), moody(True, medium)),
    **dict.fromkeys(("lively", "playful", "carefree", "energetic"), moody(True, fast)),
    **dict.fromkeys(("sorrowful", "gloomy", "mournful", "lonely"), moody(False, slow)),
    **dict.fromkeys(("pensive", "thoughtful", "brooding", "serious"), moody(False, medium)),
    **dict.fromkeys(("urgent", "agitated", "nervous", "dramatic"), moody(False, fast)),
}


def promised(text: str) -> list[str]:
    return [words for words in PROMISES if words in text and re.search(rf"\b{re.escape(words)}\b", text)]


def test_every_phrase_promises_something_that_the_table_knows() -> None:
    assert [phrase.text for phrase in PHRASES if not promised(phrase.text)] == []
    assert sorted(words for words in PROMISES if not any(words in promised(phrase.text) for phrase in PHRASES)) == []


def test_every_caption_is_true_of_its_clip_and_every_phrase_of_some_clip() -> None:
    instruments = ("piano", "guitar", "strings", "violin", "flute", "clarinet", "organ", "marimba", "mallets", "bells",
                   "chimes", "synth lead", "lead synthesizer", "synth pad", "synthesizer pad")
    drawn = [draw_attributes(track_rng(3, "train", index)) for index in range(500)]
    for index, attributes in enumerate(drawn):
        texts = paraphrases(attributes, np.random.default_rng(index))
        assert len(texts) == PARAPHRASES
        for text in texts:
            assert text == text.strip() and "{" not in text and "  " not in text and not text.startswith(",")
            for words in promised(text):
                assert PROMISES[words](attributes), (words, text, attributes)
            found = {name for name in instruments if name in text}
            own = {name for known in module.NAMES[attributes.instrument] for name in instruments if name in known}
            assert found <= own, (text, attributes)
    assert [phrase.text for phrase in PHRASES if not any(phrase.true_of(attributes) for attributes in drawn)] == []


@pytest.mark.parametrize("index", [0, 7])
def test_the_clips_are_those_of_the_first_world(index: int) -> None:
    plain, told = (demo_world(name).compose(5, "train", index) for name in ("music", PARAPHRASED))
    assert np.array_equal(plain.waveform_S, told.waveform_S)
    assert told.texts[:4] == plain.texts and len(told.texts) == 4 + PARAPHRASES
    assert (told.tags, told.facts) == (plain.tags, plain.facts)
    identity = demo_world(PARAPHRASED).identity(5)
    assert identity == {"seed": 5, "composer_version": 1, "world": PARAPHRASED} and world_of(identity) is not None


@pytest.mark.parametrize(("experiment", "world"), [
    ("stages/clap", PARAPHRASED), ("stages/clap_second", PARAPHRASED), ("stages/teacher", PARAPHRASED),
    ("tta/stages/teacher", "events"), ("tta/stages/sections", "events"), ("demo", None),
])
def test_the_stages_of_text_towers_read_it_and_the_demo_does_not(experiment: str, world: str | None) -> None:
    assert load_experiment(PACKAGED / f"{experiment}.yaml")["data"]["init_args"].get("demo_world") == world
