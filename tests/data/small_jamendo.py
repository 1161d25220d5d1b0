"""MTG-Jamendo's layout in miniature: the repository's tables as Python's csv module writes them, and mp3 files."""

from __future__ import annotations

import csv
from pathlib import Path

from small_mtat import write_mp3

HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
SECONDS = 3.0
# The tracks of the tests: number -> (split, tags).
TRACKS = {
    948: ("train", ["mood/theme---background"]),
    950: ("train", ["genre---poprock", "instrument---electricguitar", "mood/theme---happy"]),
    11839: ("train", ["mood/theme---calm", "mood/theme---melodic", "mood/theme---relaxing", "mood/theme---soft"]),
    1085700: ("train", ["genre---ambient", "instrument---piano"]),
    1009600: ("validation", ["genre---classical"]),
    214: ("test", ["genre---punkrock"]),
    215: ("test", ["genre---metal", "instrument---voice"]),
}


def path_of(number: int, ending: str = "") -> str:
    return f"{number % 100:02d}/{number}{ending}.mp3"


def row(number: int, tags: list[str], path: str | None = None, duration: object = SECONDS) -> list[object]:
    return [f"track_{number:07d}", f"artist_{number % 7:06d}", f"album_{number % 11:06d}",
            path_of(number) if path is None else path, duration, *tags]


def write_table(path: Path, rows: list[list[object]]) -> None:
    """As the repository's own scripts write it: tabs, \\r\\n, a cell a tag under one heading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([HEADER, *rows])


def write_jamendo(root: Path, ending: str = "", audio: bool = True, subset: str = "autotagging",
                  more: dict[int, tuple[str, list[str]]] | None = None) -> Path:
    tracks = TRACKS | (more or {})
    for split in ("train", "validation", "test"):
        write_table(root / f"data/splits/split-0/{subset}-{split}.tsv",
                    [row(number, tags) for number, (part, tags) in tracks.items() if part == split])
    for number in tracks if audio else ():
        write_mp3(root / path_of(number, ending), number, SECONDS + 0.1)
    return root
