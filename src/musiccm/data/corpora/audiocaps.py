"""AudioCaps: captions by TANGO's JSON lines or by the official tables, 10 s clips that everybody downloads alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from musiccm.data.corpora.audiocaps_files import ClipFiles, ClipName, clip_name, seconds
from musiccm.data.corpora.labels import no_words
from musiccm.data.corpora.reading import Entry, Listing
from musiccm.data.corpora.report import BadItem
from musiccm.data.corpora.text_tables import inside_root, is_missing, is_text, malformed, read_table, read_text
from musiccm.data.names import AmbiguousName, with_slashes
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

#: What indices and folders call the splits.
NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
#: What follows a split's name in the name of its index: the official tables', TANGO's and ConsistencyTTA's files'.
_ENDINGS = (".csv", ".json", ".jsonl", "_audiocaps.json", "_audiocaps_subset.json")
#: Where an index may lie within the corpus: in it, or as in the three repositories.
_FOLDERS = ("", "data", "dataset")


@dataclass(frozen=True)
class _Row:
    """A sound row of an index: its line, its clip, its caption, the file it names (if it does) and its tags."""

    line: int
    clip: ClipName
    caption: str
    location: str = ""
    tags: tuple[str, ...] = ()


def list_audiocaps(
    root: str | Path,
    split: str,
    files: Mapping[str, str] | None = None,
    audio: str | Path | None = None,
    missing: float = 0.2,
) -> Listing:
    """List one split of AudioCaps.

    An index is the official table (`audiocap_id,youtube_id,start_time,caption`), or TANGO's and ConsistencyTTA's JSON
    lines (`location`, `captions`; one caption a line). Lines of one clip are one clip with several captions. The folder
    in `location` is that of another machine and is passed over unless the file is there; the audio is looked for by its
    name (`ClipFiles`). Clips without audio, as videos vanish, are counted as `not_downloaded` and named in the report.

    Args:
        root: Folder with the indices and the audio.
        split: `"train"`, `"validation"` or `"test"`.
        files: The index of each split, relative to `root`; looked for by the usual names if not given.
        audio: Folder that is searched for the audio; `root` if None.
        missing: Largest share of the clips that may lack their audio; a line that cannot be used counts as a clip.

    Returns:
        The listing, whose tables have the lines and captions, and the clips without audio by their number of captions.

    Raises:
        MusiccmError: There is no index or no audio, or more is missing than `missing`.
    """
    root = Path(root)
    if not isinstance(missing, int | float) or not 0 <= missing <= 1:
        raise MusiccmError(f"missing: expected a share from 0 to 1, found {missing!r}")
    path = _index(root, split, files)
    listing = Listing(root, split)
    clips = _clips(path, listing)
    folder = root if audio is None else Path(audio)
    if not folder.is_dir():
        raise MusiccmError(f"{folder}: no such folder; expected the audio of AudioCaps, as <youtube_id>_<start>.wav")
    found = ClipFiles(folder, NAMES[split], [rows[0].clip for rows in clips.values()])
    away: dict[str, int] = {}
    for name, rows in clips.items():
        file = _file(root, rows, found)
        if file is None:
            away[name] = len(rows)
        elif isinstance(file, BadItem):
            listing.bad.append(BadItem(name, file.path, file.reason, file.detail))
        else:
            captions = list(dict.fromkeys(row.caption for row in rows))
            tags = list(dict.fromkeys(tag for row in rows for tag in row.tags))
            listing.entries.append(Entry(name, file, captions, tags))
    _count_away(listing, path, folder, clips, away, missing)
    listing.tables["index"] = {"lines": sum(map(len, clips.values())), "clips": len(clips),
                               "captions": sum(len(entry.captions) for entry in listing.entries)}
    return listing


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The captions of TANGO's JSON lines by the names of the files, without suffix.

    Args:
        path: A file of captions by clip, perhaps one of these.

    Returns:
        `(name, caption)` of each line; nothing where the first line is of another kind.

    Raises:
        MusiccmError: A line cannot be used.
    """
    rows = _json_rows(path)
    first = next(rows, None)
    if not isinstance(first, _Row):
        return []
    found = [first, *rows]
    if bad := [row for row in found if isinstance(row, BadItem)]:
        raise MusiccmError(f"{path}: {len(bad)} lines cannot be used, first {bad[0].detail}")
    return [(escaped(row.clip.stem), row.caption) for row in found if isinstance(row, _Row)]


def audiocaps_has(
    root: str | Path, files: Mapping[str, str] | None = None, audio: str | Path | None = None, missing: float = 0.2,
    split: str = "test",
) -> bool:
    """Whether there is an index of a split."""
    return split in files if files is not None else bool(_indices(Path(root), split))


def _indices(root: Path, split: str) -> list[Path]:
    paths = [root / folder / f"{name}{ending}" for folder in _FOLDERS for name in NAMES[split] for ending in _ENDINGS]
    return [path for path in paths if path.is_file()]


def _index(root: Path, split: str, files: Mapping[str, str] | None) -> Path:
    if split not in NAMES:
        raise MusiccmError(f"split must be one of {', '.join(NAMES)}, found {split!r}")
    if not root.is_dir():
        raise MusiccmError(f"{root}: no such corpus folder; expected AudioCaps: its tables or TANGO's JSON lines, and "
                           "the audio (docs/data.md)")
    if files is not None:
        if split not in files:
            raise MusiccmError(f"{root}: files names no index of the {split} split; it has {', '.join(files)}")
        return root / files[split]
    found = _indices(root, split)
    if len(found) != 1:
        name = NAMES[split][0]
        raise MusiccmError(f"{root}: expected one index of the {split} split ({name}.csv of AudioCaps, or "
                           f"{name}_audiocaps.json of TANGO), found "
                           f"{' and '.join(str(path.relative_to(root)) for path in found) or 'none'}; name it under "
                           "files")
    return found[0]


def _clips(path: Path, listing: Listing) -> dict[str, list[_Row]]:
    """The sound rows of an index by clip, in its order; the others go to the listing.

    Raises:
        MusiccmError: There are none.
    """
    clips: dict[str, list[_Row]] = {}
    for row in _table_rows(path, listing) if path.suffix == ".csv" else _json_rows(path, whole=True):
        if isinstance(row, BadItem):
            listing.bad.append(row)
        else:
            clips.setdefault(escaped(row.clip.id), []).append(row)
    if not clips:
        first = f"; first {listing.bad[0].detail}" if listing.bad else ""
        raise MusiccmError(f"{path}: expected clips with captions, found none that can be used among "
                           f"{len(listing.bad)} lines{first}")
    return clips


def _table_rows(path: Path, listing: Listing) -> Iterator[_Row | BadItem]:
    table = read_table(path)
    if lacking := set(COLUMNS) - set(table.header):
        raise MusiccmError(f"{path}: no column {' or '.join(sorted(lacking))}; expected {', '.join(COLUMNS)}, found "
                           f"{', '.join(table.header)}")
    listing.notes += table.notes
    yield from table.bad
    numbers: set[str] = set()
    for line, cells in table.rows:
        number, video, start, caption = (
            dict(zip(table.header, cells, strict=True))[name].strip() for name in COLUMNS)
        begin = seconds(start)
        if not video or is_missing(video) or not inside_root(video) or "/" in video:
            yield table.refuse(line, f"youtube_id is {video!r}")
        elif begin is None:
            yield table.refuse(line, f"start_time is {start!r}, expected seconds")
        elif number and number in numbers:
            yield BadItem(number, escaped(path), "duplicate_id", f"line {line}: the audiocap_id occurs before")
        else:
            numbers.add(number)
            yield _worded(path, _Row(line, ClipName(video, begin, number), caption))


def _json_rows(path: Path, whole: bool = False) -> Iterator[_Row | BadItem]:
    """The lines of a file; one that is to be an index as a `whole` is no array of them."""
    content = read_text(path, "a JSON object with location and captions in each line")
    if whole and content.lstrip().startswith("["):
        raise MusiccmError(f"{path}: expected a JSON object with location and captions in each line, found one JSON "
                           "array; write its items a line each (jq -c '.[]')")
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            item = json.loads(text)
        except (ValueError, RecursionError):
            item = None
        if not isinstance(item, dict):
            yield malformed(path, line, "not a JSON object with location and captions")
            continue
        location: Any = item.get("location")
        caption: Any = item.get("captions")
        stem = PurePosixPath(with_slashes(location)).stem if isinstance(location, str) and "\0" not in location else ""
        if not stem or is_missing(location):
            yield malformed(path, line, f"location is {location!r}, expected the path of a file")
        else:
            yield _worded(path, _Row(line, clip_name(stem), caption, str(location), tuple(_tags(item.get("labels")))))


def _worded(path: Path, row: _Row) -> _Row | BadItem:
    """A row with its caption as a sentence."""
    said: Any = row.caption
    if not isinstance(said, str) or not said.strip() or is_missing(said) or not is_text(said):
        found = no_words(said) if said is None or isinstance(said, str) else f"{type(said).__name__} {said!r:.60}"
        return BadItem(escaped(row.clip.id), escaped(path), "no_caption",
                       f"line {row.line}: expected a sentence under captions, found {found}")
    return _Row(row.line, row.clip, said.strip(), row.location, row.tags)


def _tags(labels: Any) -> list[str]:
    """The labels that one of TANGO's files has beside the captions."""
    items = labels if isinstance(labels, list) else [labels]
    return [item.strip() for item in items if isinstance(item, str) and item.strip() and is_text(item)]


def _file(root: Path, rows: list[_Row], files: ClipFiles) -> Path | BadItem | None:
    """The file of a clip: where its rows say, else wherever it is found by its name."""
    stated = rows[0].location
    if stated and inside_root(stated) and (path := root / with_slashes(stated)).is_file():
        return path
    try:
        return files.find(rows[0].clip)
    except AmbiguousName as error:
        return BadItem(rows[0].clip.id, escaped(rows[0].clip.id), "ambiguous_name", str(error))


def _count_away(
    listing: Listing, index: Path, folder: Path, clips: Mapping[str, list[_Row]], away: dict[str, int], missing: float
) -> None:
    """Say which clips have no audio, and refuse a corpus that lacks too many; unusable lines count as clips."""
    if not away:
        return
    unusable = sum(item.path == escaped(index) for item in listing.bad)
    total = len(clips) + unusable
    of = f"{total} clips of {index.name}" + (f" ({unusable} of them lines that cannot be used)" if unusable else "")
    first = ", ".join(list(away)[:3])
    if len(away) == len(clips):
        raise MusiccmError(f"{folder}: the audio of none of the {len(clips)} clips of {index.name} is here, first "
                           f"{first}; expected <youtube_id>_<start>.wav or another name of docs/data.md")
    if len(away) > missing * total:
        raise MusiccmError(f"{folder}: {len(away)} of {of} have no audio, first {first}: "
                           f"more than the accepted {missing:.0%}. Download them, name their folder by audio, or "
                           "accept more by missing")
    listing.unused["not_downloaded"] = len(away)
    listing.tables["not_downloaded"] = away
    listing.notes.append(f"{len(away)} of {of} have no audio, first {first}")
