"""What captions speak of: their words and phrases, counted, and sorted into instruments, moods, tempi and so on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

#: Words that say nothing of the music; what is left of a text without them is its content.
STOP_WORDS = frozenset("""
a an the and or but of with without in on at to from for by over under into as is are be it its this that there then
first some any no not very more all both one own other its his her up out off bpm
please make makes give me my i we you your us want need can could would like let lets do does don t so too really
beautiful nice lovely good great cool
music musical piece song track tune clip sound sounds recording playing played plays play featuring
""".split())

#: The phrases that are looked for, by group; a longer one hides those within it, and an earlier group's those of later
#: ones: "rock drums" are no genre. Words are matched without a plural's s.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "instruments": tuple("""
piano|grand piano|electric piano|keyboard|harpsichord|celesta|music box|organ|drawbar organ|pipe organ|accordion
guitar|acoustic guitar|electric guitar|plucked guitar|classical guitar|ukulele|banjo|mandolin|sitar|harp|lute
bass|bass guitar|electric bass|double bass|synth bass|strings|bowed strings|string section|violin|violin section|viola
cello|fiddle|orchestra|flute|wooden flute|clarinet|oboe|bassoon|recorder|saxophone|sax|harmonica|bagpipes
trumpet|trombone|french horn|horn|tuba|brass|woodwind|marimba|wooden mallets|mallets|xylophone|vibraphone|glockenspiel
bells|chimes|synth|synthesizer|synth lead|lead synthesizer|synth pad|synthesizer pad|warm synthesizer pad
choir|voice|vocals|female vocals|male vocals|singing|singer|rap
""".replace("\n", "|").strip("|").split("|")),
    "drums": tuple("""
no drums|without drums|no percussion|drums|drum kit|drum machine|percussion|soft percussion|light percussion|shaker
rim clicks|rock drums|rock beat|backbeat|backbeat drum kit|dance drums|dance beat|four-on-the-floor beat|soft drums
beat|snare|hi-hat|kick drum|cymbals|hand claps|congas|bongos|tambourine|breakbeat
""".replace("\n", "|").strip("|").split("|")),
    "moods": tuple("""
calm|peaceful|gentle|warm|pleasant|hopeful|cheerful|happy|joyful|sad|melancholic|melancholy|sombre|wistful|moody
reflective|tense|driving|restless|relaxing|relaxed|dreamy|romantic|tender|soothing|uplifting|energetic|epic|dark
dramatic|mysterious|playful|funny|nostalgic|aggressive|angry|scary|eerie|emotional|inspiring|motivational|meditative
mellow|serene|bright|triumphant|groovy|heavy|powerful|lively|carefree|brooding|urgent|sleepy|solemn
""".replace("\n", "|").strip("|").split("|")),
    "tempi": tuple("""
slow|unhurried|moderate|mid-tempo|medium tempo|fast|quick|upbeat|fast tempo|slow tempo|three-four time|four-four time
waltz time|leisurely|brisk|up-tempo
""".replace("\n", "|").strip("|").split("|")),
    "textures": tuple("""
solo|melody|single melody line|line|tune|chords|block chords|broken chords|arpeggios|arpeggiated|full band
band|duet|riff|drone|accompaniment|harmony|solo melody|notes|strokes|hits|tones|loop
""".replace("\n", "|").strip("|").split("|")),
    "registers and keys": tuple("""
low|deep|mid-range|high|high-pitched|major|minor|dorian|mixolydian
""".replace("\n", "|").strip("|").split("|")),
    "genres": tuple("""
rock|hard rock|soft rock|pop|jazz|blues|folk|country|classical|baroque|opera|ambient|new age|electronic|techno|house
trance|dance|disco|funk|soul|gospel|reggae|ska|latin|salsa|samba|bossa nova|hip hop|trap|drum and bass|dubstep|metal
heavy metal|punk|grunge|indie|lullaby|ballad|march|waltz|soundtrack|film music|chamber music|minimal|chillout|lo-fi
""".replace("\n", "|").strip("|").split("|")),
}

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_BPM = re.compile(r"(?<![\d.])(\d{2,3}) ?bpm\b")


#: Whoever asks for one of these asks for a sound; a mood is asked for beside one.
NAMING, COLOURING = ("instruments", "drums", "genres"), ("moods",)


def tokens(text: str) -> list[str]:
    """The words of a text, in lower case, split at hyphens, without a plural's s."""
    return [_singular(word) for word in _TOKEN.findall(text.lower())]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


_STOPS = frozenset(_singular(word) for word in STOP_WORDS)


def content_words(text: str) -> list[str]:
    """What of a text says something of the music: its words without numbers and without `STOP_WORDS`, each once."""
    return list(dict.fromkeys(word for word in tokens(text) if word not in _STOPS and not word.isdecimal()))


def words_of(groups: Iterable[str]) -> frozenset[str]:
    """The content words of the phrases of some of `GROUPS`."""
    return frozenset(word for group in groups for phrase in GROUPS[group] for word in content_words(phrase))


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How many captions have each content word."""
    return Counter(word for caption in captions for word in content_words(caption))


def count_phrases(captions: Iterable[str]) -> dict[str, Counter[str]]:
    """How many captions have each phrase of `GROUPS`, and under `other` the content words that stand in no phrase.

    Args:
        captions: Texts.

    Returns:
        Counters by group; a group of which nothing occurs is left out.
    """
    looked_for = {group: _Phrases(phrases) for group, phrases in GROUPS.items()}
    found: dict[str, Counter[str]] = {group: Counter() for group in [*GROUPS, "other"]}
    for caption in captions:
        words = tokens(caption)
        covered = [False] * len(words)
        for group, phrases in looked_for.items():
            found[group].update(phrases.within(words, covered))
        rest = {word for word, told in zip(words, covered, strict=True) if not told}
        found["other"].update(rest & set(content_words(caption)))
    return {group: counter for group, counter in found.items() if counter}


class _Phrases:
    """The phrases of a group, by their first word, longest first."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.by_first: dict[str, list[tuple[list[str], str]]] = {}
        for phrase in phrases:
            self.by_first.setdefault(tokens(phrase)[0], []).append((tokens(phrase), phrase))
        for starting in self.by_first.values():
            starting.sort(key=lambda entry: -len(entry[0]))

    def within(self, words: list[str], covered: list[bool]) -> set[str]:
        """Which phrases occur in a text, of words that are not covered yet; marks theirs as covered."""
        found, place = set(), 0
        while place < len(words):
            for parts, phrase in self.by_first.get(words[place], ()):
                if words[place : place + len(parts)] == parts and not any(covered[place : place + len(parts)]):
                    found.add(phrase)
                    covered[place : place + len(parts)] = [True] * len(parts)
                    place += len(parts) - 1
                    break
            place += 1
        return found


def bpm_range(captions: Iterable[str]) -> tuple[int, int, int] | None:
    """The tempi that captions state as `80 bpm`: the lowest, the highest and how many captions; None without any."""
    stated = [int(found[1]) for caption in captions if (found := _BPM.search(caption.lower()))]
    return (min(stated), max(stated), len(stated)) if stated else None
