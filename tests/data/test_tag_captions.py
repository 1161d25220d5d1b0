"""Captions from tags, checked by an oracle of words that was written without the code's tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiccm.data.corpora.tag_captions import captions, understand
from musiccm.data.corpora.tag_words import ALL_TAGS, DENIALS, MEANINGS, TOP_50, UNSPOKEN

FEMALE = ["female vocal", "female vocals", "female voice", "female singer", "female singing", "woman", "woman singing",
          "women", "girl", "female"]
MALE = ["male vocal", "male vocals", "male voice", "male singer", "man", "man singing", "men", "male"]
NO_VOICE = ["no voice", "no voices", "no vocal", "no vocals", "no singing", "no singer"]
SINGS = re.compile(r"(?<!no )(?<!without )\b(vocals|singing|voice|singer|woman|man|choir|chanting|talking)\b")
DENIES_VOICE = re.compile(r"\b(no vocals|instrumental|without vocals|no singing)\b")


def test_the_tables_cover_all_188_names_once_or_say_why_not():
    assert len(ALL_TAGS) == len(set(ALL_TAGS)) == 188 and len(TOP_50) == 50 and set(TOP_50) <= set(ALL_TAGS)
    meant = {tag for things in MEANINGS.values() for tags in things.values() for tag in tags}
    assert meant | set(DENIALS) | UNSPOKEN == set(ALL_TAGS)
    assert not (meant | set(DENIALS)) & UNSPOKEN and not meant & set(DENIALS)


@pytest.mark.parametrize("names", [FEMALE, MALE])
def test_synonyms_are_one_thing(names):
    single = {understand([name]) for name in names}
    assert single == {understand(names)} and len(understand(names).said) == 1
    assert {tuple(captions([name], "5")) for name in names} == {tuple(captions(names, "5"))}
    text = captions([*names, "guitar"], "5")[0]
    assert len(SINGS.findall(text)) <= 2 and "guitar" in text  # "a female voice", not three of them


@pytest.mark.parametrize("denial", NO_VOICE)
def test_a_denied_voice_is_never_heard_and_always_denied(denial):
    for key in range(60):
        for text in captions([denial, "guitar", "slow"], str(key)):
            assert DENIES_VOICE.search(text) and not SINGS.search(text), text
        assert all(not DENIES_VOICE.search(text) for text in captions(["guitar", "slow"], str(key)))


@pytest.mark.parametrize(("tags", "said"), [
    (["no vocals", "female voice"], []), (["no voice", "choir"], []), (["no guitar", "acoustic guitar"], []),
    (["no strings", "violin", "flute"], ["flute"]), (["slow", "fast", "piano"], ["piano"]),
    (["quiet", "loud"], []), (["not rock", "hard rock"], []), (["no drums", "drums", "harp"], ["harp"]),
    (["vocals", "woman"], ["female"]), (["guitar", "classical guitar"], ["classical guitar"]),
    (["clasical"], ["classical"]), (["harpsicord"], ["harpsichord"]), (["lol"], []), ([], []),
])
def test_contradictions_are_left_unsaid(tags, said):
    meaning = understand(tags)
    assert [thing for _, thing in meaning.said] == said and meaning.denied == ()
    assert bool(captions(tags, "1")) == bool(said)


def test_denials_of_things():
    assert all("flute" in t and re.search("no flute|without flute", t) for t in captions(["no flute"], "3"))
    assert all("not opera" in text for text in captions(["not opera", "harp"], "3"))
    for key in range(30):
        assert all(re.search("no beat|without beat", text) for text in captions(["no beat", "organ"], str(key)))


def test_wording_varies_over_clips():
    tags = ["guitar", "slow", "female vocal", "country"]
    texts = [captions(tags, str(key)) for key in range(200)]
    assert len({text[0] for text in texts}) > 30
    assert all(word in text[0] for text in texts for word in ("guitar", "slow", "country"))
    assert captions(tags, "7") == captions(list(reversed(tags)), "7")


@settings(max_examples=200, deadline=None)
@given(st.sets(st.sampled_from(ALL_TAGS), max_size=12), st.integers(0, 10**6))
def test_any_tags_make_sound_sentences_or_none(tags, key):
    texts = captions(tags, str(key))
    assert bool(texts) == bool(understand(tags)) and len(set(texts)) == len(texts) <= 3
    for text in texts:
        assert text == text.strip() and text and "  " not in text and "{" not in text and ", ," not in text
        assert not re.search(r"\b(with|featuring|and)(,|$)", text)
        assert not (DENIES_VOICE.search(text) and SINGS.search(text))
    # Nothing is said that no tag says: each denial only where it is a tag, each tempo only where it is one.
    assert not any(re.search(r"\bno ", text) and not set(DENIALS) & tags for text in texts)
    assert not any(re.search(r"\bslow\b", text) and "slow" not in tags for text in texts)
