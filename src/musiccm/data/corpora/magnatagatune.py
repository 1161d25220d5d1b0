"""MagnaTagATune as it is downloaded: `annotations_final.csv`, `clip_info_final.csv`, mp3 files in folders 0 to f."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from musiccm.data.corpora.folder_scan import scan_folder
from musiccm.data.corpora.reading import Entry, Listing
from musiccm.data.corpora.report import BadItem
from musiccm.data.corpora.split_lists import read_split_list
from musiccm.data.corpora.tag_captions import captions
from musiccm.data.corpora.tag_draw import draw_even, tag_counts, top_tags
from musiccm.data.corpora.tag_words import ALL_TAGS, TOP_50
from musiccm.data.corpora.text_tables import Table, inside_root, is_missing, read_table
from musiccm.data.names import AmbiguousName, FileNames, pair_names, with_slashes
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

# The split that papers compare on. A folder is the last digit of a hash of the album, so that albums stay together.
FOLDERS = {"train": "0123456789ab", "validation": "c", "test": "def"}
INFO_COLUMNS = ("clip_id", "track_number", "title", "artist", "album", "url", "segmentStart", "segmentEnd",
                "original_url", "mp3_path")
_CREDITS = ("title", "artist", "album", "url")
# <artist>-<album>-<track>-<title>-<start>-<end>.mp3, in seconds of the track.
_SEGMENT = re.compile(r"-(\d+)-(\d+)\.mp3$")


@dataclass(frozen=True)
class _Row:
    """A sound row of the annotations: line, id, path and tags."""

    line: int
    id: str
    path: str
    tags: list[str]

    @property
    def stem(self) -> str:
        """`<folder>/<name>` without the suffix, which is what split lists name."""
        return str(PurePosixPath(self.path).with_suffix(""))


def list_magnatagatune(
    root: str | Path, split: str, lists: str | Path | None = None, draw: int | None = None, draw_seed: int = 0
) -> Listing:
    """List one split of MagnaTagATune.

    Captions come from the tags (`tag_captions`); clips whose tags say nothing are left out and counted as `untagged`.

    Args:
        root: Folder with `annotations_final.csv`, `clip_info_final.csv` and the folders `0` to `f`.
        split: `"train"` (folders 0-b), `"validation"` (c) or `"test"` (d-f).
        lists: Folder with published lists (`train.npy`, `valid.npy`, `test.npy`) in place of the split by folder.
        draw: Take so many clips of `train`, evenly over the fifty most frequent tags; every clip if not given.
        draw_seed: Decides which.

    Returns:
        The listing. The draw's tag counts stand in its tables as `tags_before_draw` and `tags_after_draw`.

    Raises:
        MusiccmError: A file or folder is missing, or is not MagnaTagATune's.
    """
    root = Path(root)
    if split not in FOLDERS:
        raise MusiccmError(f"split must be one of {', '.join(FOLDERS)}, found {split!r}")
    _check_folders(root)
    table = read_table(root / "annotations_final.csv", "\t", names=("mp3_path",))
    tags = table.header[1:-1]
    if (table.header[0], table.header[-1]) != ("clip_id", "mp3_path") or not tags:
        raise MusiccmError(f"{table.path}: expected the columns clip_id, a column for each tag, mp3_path, separated by "
                           f"tabs; found {', '.join(table.header[:3])}, ..., {table.header[-1]}")
    listing = Listing(root, split, bad=list(table.bad), notes=list(table.notes))
    credits, paths = _info(root, listing)
    rows = _sound_rows(table, tags, paths, split, listing)
    frequency = tag_counts((row.tags for row in rows), tags)
    _note_unnamed(root, split, rows, listing)
    rows = _of_split(rows, split, lists, listing)
    _note_tags(listing, tags, frequency)
    names, untagged = FileNames(root), 0
    for row in rows:
        sentences = captions(row.tags, row.id)
        if not sentences:
            untagged += 1
            continue
        try:
            path = names.find(row.path)
        except AmbiguousName as error:
            listing.bad.append(BadItem(row.id, escaped(row.path), "ambiguous_name", f"line {row.line}: {error}"))
            continue
        listing.entries.append(Entry(row.id, path, sentences, row.tags, {}, credits.get(row.id, {}),
                                     _stated_s(row.path)))
    if untagged:
        listing.unused["untagged"] = untagged
    if draw is not None and split == "train":
        _draw(listing, top_tags(frequency), draw, draw_seed)
    return listing


def _check_folders(root: Path) -> None:
    if not root.is_dir():
        raise MusiccmError(f"{root}: no such corpus folder; expected MagnaTagATune: annotations_final.csv, "
                           "clip_info_final.csv and the folders 0 to f")
    if not any((root / folder).is_dir() for folders in FOLDERS.values() for folder in folders):
        raise MusiccmError(f"{root}: none of the folders 0 to f; join mp3.zip.001, .002 and .003 into one file and "
                           "unpack it here")


def _info(root: Path, listing: Listing) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Credits and paths by clip id; a broken row costs the credits, and is noted: the audio is not worse for it."""
    path = root / "clip_info_final.csv"
    if not path.is_file():
        listing.notes.append("clip_info_final.csv is not there: clips have no title and artist")
        return {}, {}
    table = read_table(path, "\t", names=("mp3_path",))
    missing = {"clip_id", "mp3_path"} - set(table.header)
    if missing:
        raise MusiccmError(f"{path}: no column {', '.join(sorted(missing))}; expected {', '.join(INFO_COLUMNS)}, "
                           "separated by tabs")
    listing.notes += table.notes
    if table.bad:
        listing.notes.append(f"{len(table.bad)} rows of {path.name} cannot be read, first {table.bad[0].detail}: their "
                             "clips have no title and artist")
    credits, paths = {}, {}
    for _, cells in table.rows:
        values = dict(zip(table.header, cells, strict=True))
        stated = {name: values.get(name, "") for name in _CREDITS}
        credits[values["clip_id"]] = {name: text for name, text in stated.items() if text and not is_missing(text)}
        paths[values["clip_id"]] = values["mp3_path"]
    return credits, paths


def _sound_rows(table: Table, tags: list[str], paths: dict[str, str], split: str, listing: Listing) -> list[_Row]:
    """The sound rows of every split; the others go to the listing of the split that their folder belongs to."""
    elsewhere = set("".join(FOLDERS.values())) - set(FOLDERS[split])
    rows: list[_Row] = []
    ids: set[str] = set()
    for line, cells in table.rows:
        row = _row(table, line, cells, tags, paths, ids)
        if isinstance(row, _Row):
            ids.add(row.id)
            rows.append(row)
        elif _folder(cells[-1]) not in elsewhere:  # where the folder is what is wrong, it could belong to any split
            listing.bad.append(row)
    return rows


def _of_split(rows: list[_Row], split: str, lists: str | Path | None, listing: Listing) -> list[_Row]:
    in_folders = [row for row in rows if row.path[0] in FOLDERS[split]]
    if lists is None:
        return in_folders
    listed = read_split_list(Path(lists), split)
    known = pair_names(listed, [row.stem for row in rows])
    stems = set(known.pairs.values())
    if unlisted := sum(row.stem not in stems for row in in_folders):
        listing.unused["not_in_list"] = unlisted
    chosen = [row for row in rows if row.stem in stems]
    listing.bad += [
        BadItem(escaped(stem), escaped(lists), "no_label", "in the list of the split, but not among the annotations")
        for stem in sorted(listed - set(known.pairs))
    ]
    return chosen


def _row(
    table: Table, line: int, cells: list[str], tags: list[str], paths: dict[str, str], seen: set[str]
) -> _Row | BadItem:
    name, path, values, where = cells[0].strip(), _path(cells[-1]), cells[1:-1], escaped(table.path)
    if not set(values) <= {"0", "1"}:
        odd = next(value for value in values if value not in ("0", "1"))
        return table.refuse(line, f"a tag column holds {odd!r}, expected 0 or 1")
    if not name:
        return table.refuse(line, "no clip_id")
    if name in seen:
        return BadItem(name, where, "duplicate_id", f"line {line}: the clip_id occurs before")
    path = path or _path(paths.get(name, ""))
    if not path:
        return BadItem(name, where, "no_path", f"line {line}: no mp3_path here, nor in clip_info_final.csv")
    if not inside_root(path):
        detail = f"line {line} of {table.path.name}: the path leaves the corpus"
        return BadItem(name, escaped(path), "outside_root", detail)
    if len(PurePosixPath(path).parts) != 2 or _folder(path) not in "".join(FOLDERS.values()):
        return table.refuse(line, f"mp3_path is {path!r}, expected <folder>/<name>.mp3 with a folder 0 to f")
    return _Row(line, name, path, [tag for tag, value in zip(tags, values, strict=True) if value == "1"])


def _path(cell: str) -> str:
    """A path of the tables; empty where the cell says that there is none."""
    return "" if is_missing(cell) else with_slashes(cell.strip())


def _folder(path: str) -> str:
    parts = PurePosixPath(_path(path)).parts
    return parts[0] if parts and len(parts[0]) == 1 else "?"


def _stated_s(path: str) -> float | None:
    found = _SEGMENT.search(path)
    return float(int(found[2]) - int(found[1])) if found else None


def _note_unnamed(root: Path, split: str, rows: list[_Row], listing: Listing) -> None:
    """Note what lies in the folders of a split beside the files that the annotations name."""
    scans = [scan_folder(root / folder) for folder in FOLDERS[split] if (root / folder).is_dir()]
    there = [path.relative_to(root).as_posix() for scan in scans for path in scan.audio]
    known = pair_names((row.path for row in rows if _folder(row.path) in FOLDERS[split]), there)
    if unnamed := sorted(set(there) - set(known.pairs.values())):
        listing.notes.append(f"{len(unnamed)} audio files are named by no usable row of annotations_final.csv, first "
                             f"{escaped(unnamed[0])}")
    left_out = [item for scan in scans for item in (*scan.left_out, *scan.passed_over)]
    if left_out:
        listing.notes.append(f"{len(left_out)} entries of the folders were passed over, first {left_out[0].path}: "
                             f"{left_out[0].reason}")


def _note_tags(listing: Listing, tags: list[str], frequency: dict[str, int]) -> None:
    if set(tags) != set(ALL_TAGS):
        listing.notes.append(f"the annotations have {len(tags)} tags, {len(set(tags) & set(ALL_TAGS))} of them among "
                             f"the {len(ALL_TAGS)} published")
    top = set(top_tags(frequency))
    if top != set(TOP_50):
        listing.notes.append(f"the {len(top)} most frequent tags share {len(top & set(TOP_50))} with the published "
                             "top 50: these are not all annotations of MagnaTagATune")


def _draw(listing: Listing, top: list[str], count: int, seed: int) -> None:
    drawn = draw_even({entry.id: entry.tags for entry in listing.entries}, top, count, seed)
    before = tag_counts((entry.tags for entry in listing.entries), top)
    listing.unused["not_drawn"] = len(listing.entries) - len(drawn)
    listing.entries = [entry for entry in listing.entries if entry.id in drawn]
    after = tag_counts((entry.tags for entry in listing.entries), top)
    listing.tables |= {"tags_before_draw": before, "tags_after_draw": after}
    listing.notes.append(f"{count} clips drawn evenly over {len(top)} tags: a tag has {min(before.values())} to "
                         f"{max(before.values())} clips before, {min(after.values())} to {max(after.values())} after")
