"""MTG-Jamendo as it is downloaded: the tables of its repository, mp3 files in folders 00 to 99."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from musiccm.data.corpora.jamendo_captions import read_released
from musiccm.data.corpora.jamendo_words import CATEGORIES, things_of
from musiccm.data.corpora.reading import Entry, Listing
from musiccm.data.corpora.report import BadItem
from musiccm.data.corpora.tag_captions import sentences_of, settled
from musiccm.data.corpora.text_tables import Table, inside_root, is_missing, read_table
from musiccm.data.names import AmbiguousName, FileNames
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
SPLITS = ("train", "validation", "test")
#: What stands between a track's number and `.mp3`, by the release of the audio. The lengths that the tables state are
#: those of whole tracks, which the instrumental stems need not have.
AUDIO = {"full": "", "low": ".low", "instrumental": "_instrumental"}
_PATH = re.compile(r"\d\d/\d+\.mp3")
_CREDITS = {"TRACK_NAME": "title", "ARTIST_NAME": "artist", "ALBUM_NAME": "album", "URL": "url"}


@dataclass(frozen=True)
class _Row:
    """A sound row of a table: line, id, path, length in seconds and tags."""

    line: int
    id: str
    path: str
    duration_s: float
    tags: list[str]


def list_jamendo(
    root: str | Path,
    split: str,
    tables: str | Path | None = None,
    subset: str = "autotagging",
    splits: int = 0,
    tags: str | None = None,
    captions: str | Sequence[str] | None = None,
    audio: str | None = None,
) -> Listing:
    """List one split of MTG-Jamendo.

    Captions are worded from the tags, or are those of released files. A folder of audio (an archive of the download)
    that is not there is counted as `not_downloaded`, by tracks; a file that is not there, within a folder that is, is
    bad.

    Args:
        root: Folder with the audio: `00/`, ..., `99/` with `NUMBER.mp3`.
        split: `"train"`, `"validation"` or `"test"`.
        tables: Folder with the tables, `data/` of the repository; `root/data` or `root` if None.
        subset: Which of the repository's sets: `autotagging`, `autotagging_genre`, `autotagging_instrument`,
            `autotagging_moodtheme` or `autotagging_top50tags`.
        splits: Which of its five splits, `splits/split-0` to `splits/split-4`.
        tags: Table in `tables` whose tags are taken in place of those of the split, such as `raw_30s.tsv`, which has
            them all, or `raw_30s_cleantags.tsv`.
        captions: Released captions (`read_released`), relative to `tables`; clips without any are counted as
            `no_released_caption`.
        audio: Which release of the audio: `full`, `low` (`NUMBER.low.mp3`) or `instrumental`
            (`NUMBER_instrumental.mp3`, as ATTM's preprocessing writes it); if None, the one that lies there.

    Returns:
        The listing. Counts of its tags and the release of its audio stand in its tables as `tags` and `audio`.

    Raises:
        MusiccmError: A file or folder is missing, or is not MTG-Jamendo's; or the audio of several releases lies there.
    """
    root = Path(root)
    if split not in SPLITS:
        raise MusiccmError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if audio is not None and audio not in AUDIO:
        raise MusiccmError(f"audio: expected one of {', '.join(AUDIO)}, found {audio!r}")
    if not root.is_dir():
        raise MusiccmError(f"{root}: no such corpus folder; expected MTG-Jamendo: the folders 00 to 99 of its audio "
                           "(docs/data.md)")
    folder, path = _split_table(root, tables, subset, splits, split)
    listing = Listing(root, split)
    rows = _rows(_table(path), listing)
    if tags is not None:
        rows = _tagged(rows, _table(folder / tags), listing)
    written = _released(folder, captions)
    credits = _credits(folder, listing)
    rows = _downloaded(root, rows, listing)
    release = audio or _release(root, rows)
    names, left_out = FileNames(root), Counter[str]()
    for row in rows:
        said = written.get(row.path, []) if captions is not None else sentences_of(settled(things_of(row.tags)), row.id)
        if not said:
            left_out["no_released_caption" if captions is not None else "untagged"] += 1
            continue
        name = f"{row.path.removesuffix('.mp3')}{AUDIO[release]}.mp3"
        try:
            file = names.find(name)
        except AmbiguousName as error:
            listing.bad.append(BadItem(row.id, escaped(name), "ambiguous_name", f"line {row.line}: {error}"))
            continue
        stated = None if release == "instrumental" else row.duration_s
        listing.entries.append(Entry(row.id, file, said, row.tags, {}, credits.get(row.id, {}), stated))
    listing.unused |= left_out
    listing.tables["tags"] = dict(Counter(tag for entry in listing.entries for tag in entry.tags).most_common())
    listing.tables["audio"] = {release: len(listing.entries)}
    return listing


def _split_table(root: Path, tables: str | Path | None, subset: str, splits: int, split: str) -> tuple[Path, Path]:
    """`(folder of the tables, the split's table)`."""
    folders = [root / "data", root] if tables is None else [Path(tables)]
    name = f"splits/split-{splits}/{subset}-{split}.tsv"
    for folder in folders:
        if (folder / name).is_file():
            return folder, folder / name
    raise MusiccmError(f"{folders[0] / name}: no such table; expected the folder data/ of the repository "
                       "MTG/mtg-jamendo-dataset, as root/data or named by tables")


def _table(path: Path) -> Table:
    table = read_table(path, "\t", names=("PATH",), open_ended=True)
    if table.header != HEADER:
        raise MusiccmError(f"{path}: expected the columns {', '.join(HEADER)}, separated by tabs; found "
                           f"{', '.join(table.header)}")
    return table


def _rows(table: Table, listing: Listing) -> list[_Row]:
    """The sound rows of a table; the others go to the listing."""
    listing.bad += table.bad
    listing.notes += table.notes
    rows: list[_Row] = []
    ids: set[str] = set()
    for line, cells in table.rows:
        row = _row(table, line, cells)
        if isinstance(row, _Row) and row.id in ids:
            row = BadItem(row.id, escaped(table.path), "duplicate_id", f"line {line}: the TRACK_ID occurs before")
        if isinstance(row, _Row):
            ids.add(row.id)
            rows.append(row)
        else:
            listing.bad.append(row)
    return rows


def _row(table: Table, line: int, cells: list[str]) -> _Row | BadItem:
    name, path, length = cells[0].strip(), cells[3].strip(), cells[4].strip()
    if not name:
        return table.refuse(line, "no TRACK_ID")
    if not path or is_missing(path):
        return BadItem(name, escaped(table.path), "no_path", f"line {line}: no PATH")
    if not inside_root(path):
        return BadItem(name, escaped(path), "outside_root", f"line {line} of {table.path.name}: the path leaves the "
                                                            "corpus")
    if not _PATH.fullmatch(path):
        return table.refuse(line, f"PATH is {path!r}, expected <two digits>/<number>.mp3")
    try:
        duration_s = float(length)
    except ValueError:
        return table.refuse(line, f"DURATION is {length!r}, expected seconds")
    tags = [tag.strip() for tag in cells[5:] if tag.strip()]
    if odd := [tag for tag in tags if tag.partition("---")[0] not in CATEGORIES or not tag.partition("---")[2]]:
        return table.refuse(line, f"the tag {odd[0]!r}, expected one of {', '.join(CATEGORIES)}, then ---NAME")
    return _Row(line, name, path, duration_s, tags)


def _tagged(rows: list[_Row], table: Table, listing: Listing) -> list[_Row]:
    """The rows with the tags of another table; one that the table lacks keeps its own, and that is noted."""
    other = Listing(listing.root, listing.split)
    found = {row.id: row.tags for row in _rows(table, other)}
    if other.bad:
        listing.notes.append(f"{len(other.bad)} rows of {table.path.name} cannot be read, first {other.bad[0].detail}: "
                             "their tracks keep the tags of the split")
    if lacking := sum(row.id not in found for row in rows):
        listing.notes.append(f"{lacking} tracks are not in {table.path.name}, and keep the tags of the split")
    return [replace(row, tags=found.get(row.id, row.tags)) for row in rows]


def _released(folder: Path, captions: str | Sequence[str] | None) -> dict[str, list[str]]:
    """Captions by path, of one file or several."""
    files = [captions] if isinstance(captions, str) else list(captions or ())
    found: dict[str, list[str]] = {}
    for file in files:
        for path, caption in read_released(folder / file).items():
            found.setdefault(path, []).append(caption)
    return {path: list(dict.fromkeys(said)) for path, said in found.items()}


def _credits(folder: Path, listing: Listing) -> dict[str, dict[str, str]]:
    """Title, artist, album and address by track; what cannot be read costs the credits, and is noted."""
    path = folder / "raw.meta.tsv"
    if not path.is_file():
        listing.notes.append("raw.meta.tsv is not there: clips have no title and artist")
        return {}
    table = read_table(path, "\t", names=tuple(_CREDITS))
    if "TRACK_ID" not in table.header:
        raise MusiccmError(f"{path}: no column TRACK_ID; expected {', '.join(('TRACK_ID', *_CREDITS))}, separated by "
                           "tabs")
    if table.bad:
        listing.notes.append(f"{len(table.bad)} rows of {path.name} cannot be read, first {table.bad[0].detail}: their "
                             "clips have no title and artist")
    credits = {}
    for _, cells in table.rows:
        values = dict(zip(table.header, cells, strict=True))
        credits[values["TRACK_ID"]] = {name: escaped(values[column]) for column, name in _CREDITS.items()
                                       if values.get(column) and not is_missing(values[column])}
    return credits


def _downloaded(root: Path, rows: list[_Row], listing: Listing) -> list[_Row]:
    """The rows whose folder is there; the download has an archive for each, and few people fetch all hundred."""
    folders = {folder: (root / folder).is_dir() for folder in {PurePosixPath(row.path).parts[0] for row in rows}}
    if rows and not any(folders.values()):
        raise MusiccmError(f"{root}: none of the folders 00 to 99 that the tables name; unpack the audio here "
                           "(scripts/download/download.py --unpack of the repository)")
    there = [row for row in rows if folders[PurePosixPath(row.path).parts[0]]]
    if away := len(rows) - len(there):
        listing.unused["not_downloaded"] = away
        listing.notes.append(f"{sum(not found for found in folders.values())} of {len(folders)} folders of audio are "
                             f"not there, with {away} tracks")
    return there


def _release(root: Path, rows: list[_Row]) -> str:
    """The release of the audio that lies there."""
    found = [release for release, ending in AUDIO.items()
             if any((root / f"{row.path.removesuffix('.mp3')}{ending}.mp3").exists() for row in rows)]
    if len(found) > 1:
        raise MusiccmError(f"{root}: audio of more than one release lies there ({', '.join(found)}); say which by "
                           "audio")
    return found[0] if found else "full"
