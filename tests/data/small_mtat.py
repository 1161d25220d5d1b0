"""MagnaTagATune's layout in miniature: its 188 columns, its quoting, its folders, mp3 files as it has them."""

from __future__ import annotations

from pathlib import Path

import soundfile
from small_corpus import RATE_HZ, sound

from musiccm.data.corpora.tag_words import ALL_TAGS

INFO = ["clip_id", "track_number", "title", "artist", "album", "url", "segmentStart", "segmentEnd", "original_url",
        "mp3_path"]
SECONDS = 3


def quoted(cells) -> str:
    return "\t".join('"' + str(cell).replace('"', '""') + '"' for cell in cells)


def path_of(number: int, folder: str) -> str:
    return f"{folder}/some_artist-an_album-{number:02d}-a_title-{number * 29}-{number * 29 + SECONDS}.mp3"


def annotation(number: int, path: str, tags) -> str:
    assert set(tags) <= set(ALL_TAGS)
    return quoted([number, *(int(tag in tags) for tag in ALL_TAGS), path])


def info(number: int, path: str) -> str:
    return quoted([number, 1, f'Aria "da {number}"', "Some Artist", "An Album", "http://he3.magnatune.com/x", 0, 29,
                   "http://he3.magnatune.com/y.mp3", path])


def write_mp3(path: Path, number: int, seconds: float = SECONDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # 32 kb/s mono at 16 kHz, constant bitrate: no frame count in the file
    soundfile.write(path, sound(number, seconds), RATE_HZ, bitrate_mode="CONSTANT", compression_level=0.842)


def write_tables(root: Path, annotations: list[str], infos: list[str]) -> None:
    (root / "annotations_final.csv").write_text(
        "\n".join([quoted(["clip_id", *ALL_TAGS, "mp3_path"]), *annotations]) + "\n", encoding="utf-8")
    (root / "clip_info_final.csv").write_text("\n".join([quoted(INFO), *infos]) + "\n", encoding="utf-8")


def write_mtat(root: Path, clips: dict[int, tuple[str, list[str]]]) -> Path:
    """clips: number -> (folder, tags)."""
    for number, (folder, _) in clips.items():
        write_mp3(root / path_of(number, folder), number)
    write_tables(root, [annotation(n, path_of(n, folder), tags) for n, (folder, tags) in clips.items()],
                 [info(n, path_of(n, folder)) for n, (folder, _) in clips.items()])
    return root
