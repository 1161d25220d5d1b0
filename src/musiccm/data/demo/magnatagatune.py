"""Write the demo corpus in MagnaTagATune's layout: mp3 files in folders 0 to f, and its two tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from musiccm.data.corpora.magnatagatune import FOLDERS, INFO_COLUMNS
from musiccm.data.corpora.tag_words import ALL_TAGS
from musiccm.data.demo.folder import COMPOSER_VERSION, claimed, track_counts, write_all
from musiccm.data.demo.tracks import DURATION_S, make_track, write_encoded
from musiccm.data.demo.world import Attributes, draw_attributes, track_rng
from musiccm.errors import MusiccmError
from musiccm.files import write_text

# libsndfile spreads compression levels 0 to 1 over the bitrates of MPEG-2, 160 down to 8 kb/s; MagnaTagATune has 32.
_LEVEL_32_KBPS = (160 - 32) / (160 - 8)
# What players would type; each group's first word is the surest.
_TAGS = {
    "instrument": {
        "piano": ("piano",), "guitar": ("guitar", "acoustic guitar"), "strings": ("strings", "violins"),
        "flute": ("flute", "wind"), "clarinet": ("clarinet", "woodwind"), "organ": ("organ", "keyboard"),
        "marimba": ("percussion",), "bells": ("bells", "chimes"), "synth lead": ("synth", "electronic"),
        "synth pad": ("synth", "ambient"),
    },
    "drums": {"none": ("no drums", "no beat"), "soft": ("percussion",), "rock": ("drums", "rock", "beat"),
              "dance": ("drums", "dance", "beats")},
    "tempo": {"slow": ("slow", "calm"), "medium": (), "fast": ("fast", "quick")},
    "texture": {"solo": ("solo",), "chords": (), "arpeggio": (), "band": ()},
}
_VOICE = ("no vocals", "no voice", "no vocal", "no singing", "instrumental")


def demo_tags(attributes: Attributes, rng: np.random.Generator) -> set[str]:
    """Tags as players of the game would have left them: the instrument for certain, the rest now and then."""
    labels, tags = attributes.labels(), set()
    for group, words in _TAGS.items():
        for place, word in enumerate(words[labels[group]]):
            if rng.random() < (0.9 if place == 0 else 0.4) or (group == "instrument" and place == 0):
                tags.add(word)
    for word in _VOICE:
        if rng.random() < 0.25:
            tags.add(word)
    if attributes.backing != "none" and rng.random() < 0.5:
        tags.add(_TAGS["instrument"][attributes.backing][0])
    return tags


def drawn_as(split: str, index: int) -> str:
    """The split that a track is drawn for: every thirteenth of `train` lies in the folder for validation."""
    return "validation" if split == "train" and _folder(split, index) in FOLDERS["validation"] else split


def _folder(split: str, index: int) -> str:
    folders = FOLDERS["test"] if split == "test" else FOLDERS["train"] + FOLDERS["validation"]
    return folders[index % len(folders)]


def clip_path(seed: int, split: str, index: int) -> str:
    """Where a track lies: its folder decides the split."""
    name = f"demo_composer-world_{seed}_{drawn_as(split, index)}-{index:06d}-track_{index}-0-{int(DURATION_S)}.mp3"
    return f"{_folder(split, index)}/{name}"


def write_clip(root: Path, seed: int, split: str, index: int) -> None:
    """Render one track and write its mp3; an existing one is kept."""
    path = root / clip_path(seed, split, index)
    if not path.exists():
        track = make_track(seed, drawn_as(split, index), index)
        write_encoded(path, track.waveform_S, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT",
                      compression_level=_LEVEL_32_KBPS)


def write_magnatagatune(
    out: Path, tracks: int, seed: int = 0, test_tracks: int | None = None, workers: int | None = None
) -> None:
    """Write (or complete) a demo corpus of 10.24 s tracks: the music of `write_corpus`, as MagnaTagATune lies on disks.

    Args:
        out: Folder to write; an interrupted corpus is completed, one of another seed or layout is refused.
        tracks: Training tracks, those for validation included.
        seed: With the index, decides every byte of a track.
        test_tracks: Held-out tracks, by default an eighth of `tracks` and at least 16.
        workers: Processes, by default one a core.

    Raises:
        MusiccmError: The folder holds another corpus, a file cannot be written, or libsndfile cannot encode mp3.
    """
    if not soundfile.check_format("MP3", "MPEG_LAYER_III"):
        raise MusiccmError(f"libsndfile {soundfile.__libsndfile_version__} cannot encode mp3; 1.1.0 or newer is needed")
    identity = {"seed": seed, "composer_version": COMPOSER_VERSION, "layout": "magnatagatune"}
    with claimed(out, tracks, identity):
        for folder in "".join(FOLDERS.values()):
            (out / folder).mkdir(exist_ok=True)
        counts = track_counts(tracks, test_tracks, validation_tracks=0)
        write_all(write_clip, out, seed, {split: counts[split] for split in ("train", "test")}, workers)
        _write_tables(out, seed, counts)


def _write_tables(out: Path, seed: int, counts: dict[str, int]) -> None:
    annotations, infos = [["clip_id", *ALL_TAGS, "mp3_path"]], [list(INFO_COLUMNS)]
    for split in ("train", "test"):
        for index in range(counts[split]):
            # Even ids train, odd ids test: a track keeps its id when the corpus grows.
            name, path = str(2 * index + (split == "test")), clip_path(seed, split, index)
            attributes = draw_attributes(track_rng(seed, drawn_as(split, index), index))
            tags = demo_tags(attributes, np.random.default_rng([seed, split == "test", index, 1]))
            annotations.append([name, *("1" if tag in tags else "0" for tag in ALL_TAGS), path])
            infos.append([name, str(index), f"{attributes.instrument} {attributes.texture} in {attributes.metre}",
                          "Demo composer", f"World {seed}", "", "0", str(int(DURATION_S)), "", path])
    for file, rows in (("clip_info_final.csv", infos), ("annotations_final.csv", annotations)):
        # As the original: tabs, everything in quotes.
        write_text(out / file, "".join("\t".join(f'"{cell}"' for cell in row) + "\n" for row in rows))
