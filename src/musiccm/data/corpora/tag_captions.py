"""Sentences from tags: synonyms merged, denials kept, contradictions left unsaid."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from musiccm.data.corpora.tag_words import DENIALS, EXCLUSIVE, IMPLIED, MEANINGS

Thing = tuple[str, str]
AnyItem = TypeVar("AnyItem")

# Several ways to say a thing; what is not here is said by its own name.
_WORDS: dict[Thing, tuple[str, ...]] = {
    ("voice", "female"): ("female vocals", "a female voice", "a woman singing", "a female singer"),
    ("voice", "male"): ("male vocals", "a male voice", "a man singing", "a male singer"),
    ("voice", "both"): ("female and male vocals", "a woman and a man singing"),
    ("voice", "any"): ("vocals", "singing", "a voice"),
    ("voice", "choir"): ("a choir", "choral singing"),
    ("voice", "chant"): ("chanting",),
    ("voice", "speech"): ("talking",),
    ("instrument", "synthesizer"): ("synthesizer", "synth"),
    ("instrument", "drums"): ("drums", "a drum part"),
    ("instrument", "strings"): ("strings", "string instruments"),
    ("tempo", "fast"): ("fast", "quick"),
    ("mood", "eerie"): ("eerie", "scary"),
    ("mood", "weird"): ("weird", "strange"),
    ("genre", "electronic"): ("electronic", "electronica"),
}
_DENIED_VOICE = ("no vocals", "instrumental", "without vocals", "no singing")
_ADJECTIVES = ("tempo", "loudness", "mood")
# A general word adds nothing beside a more exact one.
_MORE_EXACT = {
    ("voice", "any"): (("voice", "female"), ("voice", "male"), ("voice", "choir"), ("voice", "chant")),
    ("instrument", "guitar"): tuple(("instrument", f"{kind} guitar") for kind in ("acoustic", "electric", "classical")),
    ("genre", "rock"): tuple(("genre", f"{kind} rock") for kind in (
        "hard", "soft", "alternative", "blues", "classic", "instrumental", "pop", "punk")),
    ("genre", "pop"): tuple(("genre", kind) for kind in ("instrumental pop", "pop folk", "pop rock", "synth-pop")),
}


@dataclass(frozen=True)
class Meaning:
    """What a clip's tags say once they are taken together.

    Args:
        said: `(group, thing)` of everything that is audible, in the order of `MEANINGS`.
        denied: `(group, thing)` of everything that is said to be absent.
    """

    said: tuple[Thing, ...]
    denied: tuple[Thing, ...]

    def __bool__(self) -> bool:
        return bool(self.said or self.denied)


def understand(tags: Collection[str]) -> Meaning:
    """Merge synonyms and settle contradictions.

    What one player named and another denied is neither said nor denied, as are things that exclude each other.

    Args:
        tags: Names of MagnaTagATune's tags; others are ignored.

    Returns:
        What is left; false where that is nothing.
    """
    audible = [(group, thing) for group, things in MEANINGS.items() for thing, names in things.items()
             if any(name in tags for name in names)]
    return settled(audible, [DENIALS[tag] for tag in DENIALS if tag in tags])


def settled(audible: Iterable[Thing], absent: Iterable[Thing] = ()) -> Meaning:
    """Settle what contradicts itself, and leave out general words beside more exact ones.

    Args:
        audible: `(group, thing)` of everything that tags name; the groups are those of `MEANINGS`, and `theme`.
        absent: Of everything that they deny.

    Returns:
        What is left, in the order given.
    """
    said, denied = dict.fromkeys(audible), dict.fromkeys(absent)
    for denial in list(denied):
        contrary = [thing for thing in said if thing in _family(denial)]
        if contrary:
            del denied[denial]
        for thing in contrary:
            del said[thing]
    for one, other in EXCLUSIVE:
        if one in said and other in said:
            del said[one], said[other]
    for general, exact in _MORE_EXACT.items():
        if general in said and any(thing in said for thing in exact):
            del said[general]
    return Meaning(tuple(said), tuple(denied))


def _family(denial: Thing) -> set[Thing]:
    group, _ = denial
    if group == "voice":
        return {("voice", thing) for thing in MEANINGS["voice"]}
    return {denial, *((group, thing) for thing in IMPLIED.get(denial, ()))}


def captions(tags: Collection[str], key: str, count: int = 3) -> list[str]:
    """Sentences that a clip's tags of MagnaTagATune support.

    Args:
        tags: The clip's tags.
        key: Decides the wording, such as the clip's id: the same caption for the same key on every machine.
        count: At most this many, all different. The first says everything, later ones may leave something out.

    Returns:
        Sentences in lower case without a final stop; none where the tags say nothing audible.
    """
    return sentences_of(understand(tags), key, count)


def sentences_of(meaning: Meaning, key: str, count: int = 3) -> list[str]:
    """Sentences of a meaning; see `captions`.

    Args:
        meaning: What there is to say.
        key: Decides the wording.
        count: At most this many.

    Returns:
        Sentences; none where there is nothing to say.
    """
    if not meaning:
        return []
    sentences: list[str] = []
    for number in range(count):
        sentence = _sentence(meaning if number == 0 else _part(meaning, key, number), f"{key}/{number}")
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


def _part(meaning: Meaning, key: str, number: int) -> Meaning:
    """Two thirds of what is said, at least two things; denials stay, as their absence would be a claim."""
    keep = max(2, -(-2 * len(meaning.said) // 3))
    chosen = set(sorted(meaning.said, key=lambda thing: _hash(key, number, *thing))[:keep])
    return Meaning(tuple(thing for thing in meaning.said if thing in chosen), meaning.denied)


def _sentence(meaning: Meaning, key: str) -> str:
    def of(*groups: str) -> list[str]:
        things = [thing for thing in _with_both(meaning.said) if thing[0] in groups]
        return [_pick(_WORDS.get(thing, (thing[1],)), key, *thing) for thing in things]

    adjectives, genres, audible = of(*_ADJECTIVES), of("genre"), of("instrument", "voice", "sound")
    without = [_denial(thing, key) for thing in meaning.denied]
    ensemble = of("ensemble")
    what = [*adjectives[:2], *ensemble, *genres[:2]]
    noun = _pick(("music", "piece", "track"), key, "noun") if what else "music"
    rest = [*adjectives[2:], *genres[2:], *of("theme")]
    head = " ".join([*what, noun])
    forms = ["{head} with {audible}", "{audible} in {head_a}", "{head} featuring {audible}"] if audible else ["{head}"]
    if noun != "music":
        forms += ["{head_a} with {audible}"] if audible else ["{head_a}"]
    listed = ", ".join(_shuffled([*what, *audible, *rest, *without], key))
    if (what or audible) and _hash(key, "form") % 3:
        sentence = _pick(forms, key, "which").format(
            head=head, head_a=head if noun == "music" else _article(head), audible=_and(audible))
        return ", ".join([sentence, *rest, *without])
    return listed if listed else head


def _with_both(said: Sequence[Thing]) -> list[Thing]:
    female, male = ("voice", "female"), ("voice", "male")
    if female not in said or male not in said:
        return list(said)
    return [("voice", "both") if thing == female else thing for thing in said if thing != male]


def _denial(thing: Thing, key: str) -> str:
    group, name = thing
    if group == "voice":
        return _pick(_DENIED_VOICE, key, "denied")
    if group == "genre":
        return f"not {name}"
    name = name.removeprefix("a steady ")
    return _pick((f"no {name}", f"without {name}"), key, *thing)


def _and(words: Sequence[str]) -> str:
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio8' else 'a'} {words}"  # an 80s track


def _hash(*key: object) -> int:
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _pick(options: Sequence[AnyItem], *key: object) -> AnyItem:
    return options[_hash(*key) % len(options)]


def _shuffled(words: Iterable[str], key: str) -> list[str]:
    return sorted(words, key=lambda word: _hash(key, "order", word))
