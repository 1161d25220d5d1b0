"""Captions of scenes, in many wordings; each split has sentences of its own.

A sentence belongs to one split by its hash, so what is tested was never read in training, though its words were.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from musiccm.data.demo.captions import DRUM_WORDS, TEMPO_WORDS
from musiccm.data.demo.events.world import Event, Scene, scene_rng

CAPTIONS = 4
#: One of so many sentences is kept for validation and test.
HELD_OUT = 4
#: Draws after which no sentence is taken to be left; a hundred are rarely needed.
TRIES = 20_000

#: Each instrument before another noun.
NAMES = {
    "piano": ("piano", "grand piano"),
    "guitar": ("guitar", "acoustic guitar"),
    "strings": ("string", "violin"),
    "flute": ("flute", "wooden flute"),
    "clarinet": ("clarinet",),
    "organ": ("organ", "drawbar organ"),
    "marimba": ("marimba", "wooden mallet"),
    "bells": ("bell", "chime"),
    "synth lead": ("synth lead", "lead synthesizer"),
}
MELODIES = ("melody", "line", "tune", "solo")
STROKES = ("note", "stroke", "hit", "tone")
NUMBERS = ("no", "one", "two", "three", "four", "five")
#: Words for the drums beside those of the other world, where they name the same.
DRUMS = {
    "soft": ("soft drums", *DRUM_WORDS["soft"]),
    "rock": ("rock drums", *DRUM_WORDS["rock"]),
    "dance": ("dance drums", *DRUM_WORDS["dance"]),
}
#: Drums of any style; and the share of later captions that leave the style unsaid.
ANY_DRUMS = ("drums", "a drum kit")
UNSTYLED = 0.1

# In all of these {a}, {b} and {c} are the events in the order of the form, whatever their order in the sentence.
TEMPLATES = {
    "alone": (
        "{a}", "only {a}", "{a} alone", "just {a}", "{a} and nothing else", "nothing but {a}", "{a} on its own",
        "a clip of {a}", "there is only {a}",
    ),
    "together": (
        "{a} with {b}", "{a} together with {b}", "{a} and {b} at the same time", "{a} over {b}", "both {a} and {b}",
        "{b} under {a}", "{a} along with {b} all the way", "{b} and {a} from beginning to end",
    ),
    "joins": (
        "{a}, joined by {b} half way", "{a}, with {b} from the middle on", "{a}, {b} coming in half way",
        "first {a} alone, then {b} on top", "{a}, and {b} in the second half only", "{a}; {b} {b_enter} half way",
        "first {a}, then {b} {b_join}", "{b} {b_join} {a} in the middle", "{b} entering half way over {a}",
        "{a} all the way, {b} only in the second half",
    ),
    "leaves": (
        "{a} throughout, {b} only in the first half", "{a}, with {b} until the middle",
        "{a} and {b}, the latter gone half way", "{a} with {b} that {b_stop} half way",
        "{b} only in the first half, {a} all the way", "{a} with {b} at first, then without",
        "{b} {b_stop} in the middle, {a} {a_go} on",
    ),
    "then": (
        "first {a}, then {b}", "{a}, then {b}", "{a} followed by {b}", "{a} before {b}", "{b} after {a}",
        "{a} giving way to {b}", "at first {a}, later {b}", "after {a}, {b}", "before {b}, {a}",
        "beginning with {a} and ending with {b}", "{a} in the first half, {b} in the second half",
        "{b} in the second half, {a} in the first half", "{a} and then {b}", "{b}, but first {a}",
    ),
    "then_three": (
        "first {a}, then {b}, then {c}", "{a}, then {b}, finally {c}", "{a} followed by {b} followed by {c}",
        "beginning with {a}, going on with {b}, ending with {c}", "{a}, {b} and then {c}, one after the other",
        "at first {a}, later {b}, {c} at the end", "{c} last, {b} before it, {a} first",
        "{a}, {b} in the middle, {c} at the end", "{b} between {a} and {c}, in this order",
    ),
    "then_with": (
        "{a}, then {b} with {c}", "first {a}, then {b} and {c} together", "{a} followed by {b} over {c}",
        "after {a}, {b} along with {c}", "{b} together with {c} after {a}", "{b} with {c}, but first {a}",
        "beginning with {a} alone and ending with {b} over {c}",
    ),
}
#: Around a whole sentence; {} is the sentence, and what is said of the tempo stands beside it.
WITH_TEMPO = ("{s}, {t}", "{t}: {s}", "{s} at {t}", "{s}; {t}")
OPENINGS = ("{s}", "{s}", "{s}", "a short piece: {s}")
#: Before what is a noun as a whole.
OF_NOUNS = ("music with {s}",)


@dataclass(frozen=True)
class Sentence:
    """A caption and what it says of the tempo and the drums; of events, every caption tells all.

    Args:
        text: Lower case, without a final stop.
        bpm: The number that it states, None without.
        tempo: The class that its words or its number state, None without either.
        styled: Whether it says the style of the drums, if there are any.
    """

    text: str
    bpm: int | None
    tempo: str | None
    styled: bool = True


def sentences(scene: Scene, seed: int, split: str, index: int, count: int = CAPTIONS) -> list[Sentence]:
    """Captions of a scene.

    Where the scene has a twin, that has captions of the same words in another order, sentence by sentence.

    Args:
        scene: What to tell.
        seed: Of the corpus.
        split: Whose sentences are taken.
        index: Of the clip, or of the first of a pair of twins.
        count: How many. The first states the tempo as a number and the style of drums, if there are any.

    Returns:
        The captions.

    Raises:
        RuntimeError: The wordings of a scene are all of another split.
    """
    return [sentence(scene, seed, split, index, number) for number in range(count)]


def belongs(text: str, split: str) -> bool:
    """Whether a sentence is one of a split: validation and test share theirs."""
    return (zlib.crc32(text.encode()) % HELD_OUT == 0) == (split != "train")


def sentence(scene: Scene, seed: int, split: str, index: int, number: int) -> Sentence:
    """One of a scene's captions, see `sentences`."""
    twin = scene.twin()
    for attempt in range(TRIES):
        found = _word(scene, scene_rng(seed, split, index, 1, number, attempt), number == 0)
        if not belongs(found.text, split):
            continue
        if twin is not None:
            other = _word(twin, scene_rng(seed, split, index, 1, number, attempt), number == 0)
            if not belongs(other.text, split) or words(other.text) != words(found.text):
                continue
        return found
    raise RuntimeError(f"no wording of {scene} for {split} in {TRIES} draws")


def words(text: str) -> list[str]:
    """The words of a text, sorted: what is left of it without their order. Articles are one word."""
    parts = text.replace(",", " ").replace(":", " ").replace(";", " ").split()
    return sorted("a" if part == "an" else part for part in parts)


def _pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def _word(scene: Scene, rng: np.random.Generator, full: bool) -> Sentence:
    says_bpm, says_word = False, False
    if scene.has_tempo:
        says_bpm = full or bool(rng.random() < 0.7)
        says_word = bool(rng.random() < (0.3 if says_bpm else 0.7))
    word = _pick(rng, TEMPO_WORDS[scene.tempo])
    # Before a melody, where there is one. Twins begin with the same draws: events are worded in an order of their own.
    named = sorted(scene.events, key=lambda event: (event.kind, event.sound))
    melodies = [event for event in named if event.kind == "melody"]
    slowed = melodies[int(rng.integers(len(melodies)))] if says_word and melodies and rng.random() < 0.6 else None
    styled = full or bool(rng.random() >= UNSTYLED)
    phrases = {event: _phrase(event, rng, word if event == slowed else "", styled) for event in named}
    told = dict(zip("abc", scene.events, strict=False))
    blanks = {letter: phrases[event][0] for letter, event in told.items()}
    for letter, event in told.items():
        ending = "" if phrases[event][1] else "s"
        blanks |= {f"{letter}_enter": f"enter{ending}", f"{letter}_join": f"join{ending}",
                   f"{letter}_stop": f"stop{ending}", f"{letter}_go": "go" if phrases[event][1] else "goes"}
    opening = _pick(rng, (*OPENINGS, *OF_NOUNS) if scene.form in ("alone", "together") else OPENINGS)
    text = _pick(rng, TEMPLATES[scene.form]).format(**blanks)
    tempo = ["medium tempo" if word == "mid-tempo" else f"{word} tempo"] if says_word and slowed is None else []
    tempo += [f"{scene.bpm} bpm"] if says_bpm else []
    around = _pick(rng, WITH_TEMPO)
    if not (tempo and around.startswith("{t}")):  # two colons would follow each other
        text = opening.format(s=text)
    if tempo:
        text = around.format(s=text, t=", ".join(tempo))
    return Sentence(text, scene.bpm if says_bpm else None, scene.tempo if says_bpm or says_word else None, styled)


def _phrase(event: Event, rng: np.random.Generator, tempo: str, styled: bool) -> tuple[str, bool]:
    """An event in words, and whether it is a plural."""
    if event.kind == "drums":
        phrase = _pick(rng, DRUMS[event.sound] if styled else ANY_DRUMS)
        return phrase, phrase.endswith(("drums", "clicks"))
    name = _pick(rng, NAMES[event.sound])
    if event.kind == "melody":
        return _with_article(" ".join(filter(None, (tempo, name, _pick(rng, MELODIES))))), False
    noun = _pick(rng, STROKES)
    if event.count == 1:
        return _pick(rng, (f"one {name} {noun}", f"a single {name} {noun}")), False
    number = NUMBERS[event.count] if rng.random() < 0.7 else str(event.count)
    return f"{number} {name} {noun}s", True


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
