"""Captions of the world of events: a reader of English, written apart, finds in them what is played and when."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from musiccm.data.demo.events.tracks import scene_of, words_of
from musiccm.data.demo.events.wording import Sentence
from musiccm.data.demo.events.world import Scene

COUNT = 120
INSTRUMENTS = {
    "piano": "piano", "guitar": "guitar", "string": "strings", "violin": "strings", "flute": "flute",
    "clarinet": "clarinet", "organ": "organ", "marimba": "marimba", "mallet": "marimba", "bell": "bells",
    "chime": "bells", "synth": "synth lead", "synthesizer": "synth lead",
}
NUMBERS = {"one": 1, "a single": 1, "two": 2, "three": 3, "four": 4, "five": 5} | {str(n): n for n in range(1, 6)}
DRUMS = {"soft": r"soft (?:drums|percussion)|a shaker and rim clicks|light percussion",
         "rock": r"rock drums|a rock beat|a backbeat drum kit",
         "dance": r"dance drums|a dance beat|a four-on-the-floor beat", "any": r"\bdrums|a drum kit"}
TEMPI = {"slow": "slow|unhurried", "medium": "moderate|mid-tempo|medium", "fast": "fast|quick|upbeat"}
NAME = r"(?:(?:grand|acoustic|wooden|drawbar|lead) )?(?P<name>" + "|".join(INSTRUMENTS) + r")(?: lead)?"
EVENT = re.compile(
    "|".join(f"(?P<{style}>{words})" for style, words in DRUMS.items())
    + r"|(?P<number>a single|\w+) " + NAME + r" (?:note|stroke|hit|tone)s?\b"
    + r"|(?:an?) (?:(?:" + "|".join(TEMPI.values()) + ") )?" + NAME.replace("name", "player")
    + r" (?:melody|line|tune|solo)"
)


def replaced(match: re.Match[str]) -> tuple[str, str, int]:
    """An event as (kind, sound, count)."""
    found = match.groupdict()
    for style in DRUMS:
        if found[style]:
            return "drums", style, 0
    if found["name"]:
        return "strokes", INSTRUMENTS[found["name"]], NUMBERS[found["number"]]
    return "melody", INSTRUMENTS[found["player"]], 0


# What a sentence means once its events are called X, Y and Z in the order in which it names them.
MEANINGS = [
    (r"X with Y that stops? half way|X with Y at first|X, with Y until|X and Y, the latter gone", "XY>X"),
    (r"X throughout, Y only in the first", "XY>X"), (r"X only in the first half, Y all", "XY>Y"),
    (r"X stops? in the middle, Y go", "XY>Y"),
    (r"X, joined by Y|X, with Y from the middle|X, Y coming in half|first X alone, then Y on top", "X>XY"),
    (r"X, and Y in the second half only|X; Y enters? half way|first X, then Y joins?|X all the way, Y only in the se",
     "X>XY"), (r"X joins? Y in the middle|X entering half way over Y", "Y>XY"),
    (r"first X, then Y and Z together|X, then Y with Z|X followed by Y over Z|after X, Y along with Z|"
     r"beginning with X alone and ending with Y over Z", "X>YZ"),
    (r"X together with Y after Z|X with Y, but first Z", "Z>XY"),
    (r"first X, then Y, then Z|X, then Y, finally Z|X followed by Y followed by Z|X, Y in the middle, Z at the end|"
     r"beginning with X, going on with Y, ending with Z|X, Y and then Z|at first X, later Y, Z at the end", "X>Y>Z"),
    (r"X last, Y before it, Z first", "Z>Y>X"), (r"X between Y and Z, in this order", "Y>X>Z"),
    (r"X after Y|before X, Y|X in the second half, Y in the first|X, but first Y", "Y>X"),
    (r"first X, then Y|X, then Y|X followed by Y|X before Y|X giving way to Y|at first X, later Y|after X, Y|"
     r"beginning with X and ending with Y|X in the first half, Y in the second|X and then Y", "X>Y"),
    (r"X (?:together |along )?with Y|X and Y (?:at|from)|X over Y|both X and Y|X under Y", "XY"), (r"X", "X"),
]


def understand(text: str) -> tuple[list[set[tuple[str, str, int]]], int | None, str | None]:
    """What a caption asks for: the events of each part, the number of beats a minute, the class of the tempo."""
    found = list(EVENT.finditer(text))
    events = [replaced(match) for match in found]
    plain = EVENT.sub(lambda match: "XYZ"[[m.start() for m in found].index(match.start())], text)
    meaning = next(parts for pattern, parts in MEANINGS if re.search(pattern, plain))
    parts = [{events["XYZ".index(letter)] for letter in part} for part in meaning.split(">")]
    assert {letter for letter in meaning if letter != ">"} == set("XYZ"[:len(events)]), (text, plain, meaning)
    bpm = re.search(r"\b(\d+) bpm", text)
    words = {tempo for tempo, pattern in TEMPI.items() if re.search(rf"\b(?:{pattern})\b", text)}
    assert len(words) <= 1
    return parts, int(bpm[1]) if bpm else None, words.pop() if words else None


@pytest.fixture(scope="module")
def told() -> dict[str, list[tuple[Scene, list[Sentence]]]]:
    return {split: [words_of(3, split, index) for index in range(count)]
            for split, count in (("train", COUNT), ("test", 40), ("validation", 20))}


def every(told: dict[str, list[tuple[Scene, list[Sentence]]]]) -> Iterator[tuple[Scene, int, Sentence]]:
    for clips in told.values():
        for scene, sentences in clips:
            for number, sentence in enumerate(sentences):
                yield scene, number, sentence


def test_captions_tell_the_events_and_when_they_are(told) -> None:
    for scene, number, sentence in every(told):
        parts, bpm, word = understand(sentence.text)
        wanted = [{(event.kind, event.sound if event.kind != "drums" or sentence.styled else "any", event.count)
                   for event in events} for events in scene.sections]
        assert parts == wanted, sentence.text
        assert bpm in (None, scene.bpm) and bpm == sentence.bpm
        tempo = None if scene.bpm is None else "slow" if scene.bpm < 88 else "medium" if scene.bpm < 122 else "fast"
        assert word in (None, tempo) and sentence.tempo == (tempo if bpm or word else None)
        if number == 0:
            assert sentence.styled
            assert bool(bpm) == any(kind != "strokes" for part in wanted for kind, _, _ in part), sentence.text
        assert sentence.text == sentence.text.strip().lower() and "{" not in sentence.text


def test_wordings_vary_and_no_sentence_is_in_two_splits(told) -> None:
    texts = {split: {s.text for _, sentences in clips for s in sentences} for split, clips in told.items()}
    assert len(texts["train"]) > 0.9 * 4 * COUNT, "wording hardly varies"
    words = {split: {word for text in found for word in re.findall(r"[a-z]+", text)} for split, found in texts.items()}
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert len(words["test"] - words["train"]) <= 2, "words that were never read"
    forms = {scene.form for clips in told.values() for scene, _ in clips}
    assert forms == {"alone", "together", "joins", "leaves", "then", "then_three", "then_with"}


def bag(text: str) -> list[str]:
    return sorted("a" if word == "an" else word for word in re.findall(r"[\w-]+", text))


def test_twins_have_the_same_words_in_another_order_and_mean_another_thing(told) -> None:
    pairs = 0
    for split, clips in told.items():
        for index in range(0, len(clips), 2):
            if scene_of(3, split, index)[1] is None:
                assert scene_of(3, split, index + 1)[1] is None
                continue
            pairs += 1
            assert (scene_of(3, split, index)[1], scene_of(3, split, index + 1)[1]) == (index + 1, index)
            (scene, sentences), (twin, others) = clips[index], clips[index + 1]
            assert scene.labels()["sounds"] == twin.labels()["sounds"] and scene.bpm == twin.bpm
            assert scene.labels()["order"] != twin.labels()["order"]
            for sentence, other in zip(sentences, others, strict=True):
                assert bag(sentence.text) == bag(other.text) and sentence.text != other.text
                assert understand(sentence.text)[0] != understand(other.text)[0]
    assert pairs > 30


def test_words_follow_from_seed_split_and_index_alone(told) -> None:
    assert words_of(3, "test", 7) == told["test"][7]
    assert words_of(4, "test", 7) != told["test"][7] and words_of(3, "validation", 7) != told["test"][7]
