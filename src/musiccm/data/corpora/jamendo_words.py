"""The tags of MTG-Jamendo: how uploaders wrote them, without spaces, and how captions say them."""

from __future__ import annotations

from collections.abc import Collection

CATEGORIES = ("genre", "instrument", "mood/theme")

# Tags whose words run together, or that another word says better; all others are said as they are written.
_GENRES = {
    "acidjazz": "acid jazz", "alternativerock": "alternative rock", "bluesrock": "blues rock",
    "bossanova": "bossa nova", "classicrock": "classic rock", "darkambient": "dark ambient",
    "deephouse": "deep house", "drumnbass": "drum and bass", "easylistening": "easy listening", "edm": "EDM",
    "ethno": "ethnic", "hardrock": "hard rock", "hiphop": "hip hop", "idm": "IDM",
    "instrumentalpop": "instrumental pop",
    "instrumentalrock": "instrumental rock", "jazzfusion": "jazz fusion", "newage": "new age", "newwave": "new wave",
    "popfolk": "pop folk", "poprock": "pop rock", "postrock": "post-rock", "punkrock": "punk rock", "rnb": "R&B",
    "rocknroll": "rock and roll", "singersongwriter": "singer-songwriter", "synthpop": "synth-pop",
    "triphop": "trip hop", "worldfusion": "world fusion",
}
_INSTRUMENTS = {
    "acousticbassguitar": "acoustic bass guitar", "acousticguitar": "acoustic guitar", "beat": "a steady beat",
    "bell": "bells", "bongo": "bongos", "classicalguitar": "classical guitar", "doublebass": "double bass",
    "drummachine": "drum machine", "electricguitar": "electric guitar", "electricpiano": "electric piano",
    "horn": "horns", "pad": "synth pads", "pipeorgan": "pipe organ", "rhodes": "rhodes piano",
}
_MOODS = {"drama": "dramatic", "dream": "dreamy", "space": "spacey"}
# What the music is for or about, which is no quality of its sound.
_THEMES = {
    "action": "action music", "adventure": "adventure music", "advertising": "advertising music",
    "background": "background music", "children": "children's music", "christmas": "christmas music",
    "commercial": "commercial music", "corporate": "corporate music", "documentary": "documentary music",
    "film": "film music", "game": "video game music", "holiday": "holiday music", "love": "a love song",
    "movie": "film music", "nature": "nature music", "party": "party music", "soundscape": "a soundscape",
    "sport": "sports music", "summer": "summer music", "trailer": "trailer music", "travel": "travel music",
}
# Tags that belong to another group than their category says.
_MOVED = {
    "genre---choir": ("voice", "choir"), "instrument---voice": ("voice", "any"),
    "mood/theme---ballad": ("genre", "ballad"), "mood/theme---fast": ("tempo", "fast"),
    "mood/theme---slow": ("tempo", "slow"), "mood/theme---soft": ("loudness", "soft"),
}


def things_of(tags: Collection[str]) -> list[tuple[str, str]]:
    """What tags name, for `tag_captions.settled`.

    Args:
        tags: Such as `genre---poprock`.

    Returns:
        `(group, thing)` of each, in their order, each thing once.
    """
    return list(dict.fromkeys(_thing(tag) for tag in tags))


def _thing(tag: str) -> tuple[str, str]:
    if tag in _MOVED:
        return _MOVED[tag]
    category, _, name = tag.partition("---")
    if category == "genre":
        return "genre", _GENRES.get(name, name)
    if category == "instrument":
        return "instrument", _INSTRUMENTS.get(name, name)
    return ("theme", _THEMES[name]) if name in _THEMES else ("mood", _MOODS.get(name, name))
