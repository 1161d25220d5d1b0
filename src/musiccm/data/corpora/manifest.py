"""Corpora that name their files in a manifest: CSV or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from musiccm.data.corpora.labels import no_words
from musiccm.data.corpora.reading import Entry, Listing
from musiccm.data.corpora.report import BadItem
from musiccm.data.corpora.text_tables import inside_root, is_missing, is_text, malformed, read_table, read_text
from musiccm.data.names import AmbiguousName, FileNames
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": None}
SPLITS = ("train", "validation", "test")


def list_manifest(root: str | Path, split: str, files: Mapping[str, str] | None = None) -> Listing:
    """List one split of a corpus with a plain manifest for each split.

    A row has `path` (relative to `root`) and `caption` (in JSON lines also a list of them). `tags` (in CSV separated by
    commas or semicolons, in JSON lines also a list) become tags, `id` the clip's id, and all other columns attributes.
    Rows with the same path are one clip with several captions. A path may be another spelling of a file's name
    (`FileNames`).

    Args:
        root: The corpus.
        split: `"train"`, `"validation"` or `"test"`.
        files: The manifest of each split, relative to `root`; `<split>.csv`, `.tsv` or `.jsonl` if not given.

    Returns:
        The listing.

    Raises:
        MusiccmError: The manifest is missing or has no usable columns.
    """
    root = Path(root)
    path = _manifest_path(root, split, files)
    collected = Collector(root, split, path)
    if path.suffix == ".jsonl":
        lines = read_text(path, "a JSON object with path and caption in each line").split("\n")
        for number, text in enumerate(lines, 1):
            if text.strip():
                collected.add(number, _parsed(text))
        return collected.listing
    table = read_table(path, SUFFIXES[path.suffix] or ",", names=("path",))
    if missing := {"path", "caption"} - set(table.header):
        raise MusiccmError(f"{path}: no column {' or '.join(sorted(missing))}; expected path, caption and any others, "
                           f"found {', '.join(table.header)}. A table of another layout, such as AudioCaps', needs "
                           "data.init_args.layout (docs/data.md)")
    collected.listing.bad += table.bad
    collected.listing.notes += table.notes
    for number, cells in table.rows:
        collected.add(number, dict(zip(table.header, cells, strict=True)))
    return collected.listing


def manifest_has(root: str | Path, files: Mapping[str, str] | None = None, split: str = "test") -> bool:
    """Whether a corpus with plain manifests has one for a split."""
    return split in files if files is not None else any((Path(root) / f"{split}{s}").is_file() for s in SUFFIXES)


class Collector:
    """Turns rows into entries; what is wrong with one goes to the listing.

    Args:
        root: The corpus.
        split: Which part of it.
        manifest: Where the rows come from.

    Raises:
        MusiccmError: There is no such corpus.
    """

    def __init__(self, root: Path, split: str, manifest: Path) -> None:
        if not root.is_dir():
            raise MusiccmError(f"{root}: no such corpus folder, which {manifest} describes")
        self.listing = Listing(root, split)
        self.manifest = manifest
        self._names = FileNames(root)
        self._by_path: dict[Path, Entry] = {}
        self._ids: set[str] = set()

    def add(self, number: int, row: Any) -> None:
        """Take a row of a manifest in: `path`, `caption`, and whatever else it has."""
        if not isinstance(row, dict):
            self.listing.bad.append(malformed(self.manifest, number, "not a JSON object" if row is None else
                                              f"a {type(row).__name__}, expected a JSON object"))
            return
        path = row.get("path")
        if not isinstance(path, str) or not path.strip() or is_missing(path):
            self.listing.bad.append(malformed(self.manifest, number, "no path"))
            return
        stated = "" if row.get("id") is None or is_missing(row["id"]) else str(row["id"]).strip()
        if "\0" in path or not is_text(stated):
            self.listing.bad.append(malformed(self.manifest, number, "the path or id is not sound text"))
            return
        file = self._file(number, path.strip(), stated)
        if isinstance(file, BadItem):
            self.listing.bad.append(file)
            return
        captions = _words(row.get("caption"), separator=None)
        if (known := self._by_path.get(file)) is not None and captions:
            known.captions.extend(caption for caption in captions if caption not in known.captions)
            return
        name = stated or _without_suffix(file.relative_to(self.listing.root))
        problem = self._problem(number, name, file, captions, row.get("caption"))
        if problem is not None:
            self.listing.bad.append(problem)
            return
        kept = {key: value for key, value in row.items() if key not in ("path", "caption", "tags", "id")}
        attributes = {str(key): _plain(value) for key, value in kept.items() if _plain(value)}
        entry = Entry(name, file, captions, _words(row.get("tags"), "[,;]"), attributes)
        self._ids.add(name)
        self._by_path[file] = entry
        self.listing.entries.append(entry)

    def _file(self, number: int, path: str, stated: str) -> Path | BadItem:
        """The file that a row names; `stated` is the row's id, if it has one."""
        name, where = stated or _without_suffix(PurePosixPath(path)), f"line {number} of {self.manifest.name}"
        if not inside_root(path):
            return BadItem(name, escaped(path), "outside_root",
                           f"{where}: expected a path relative to {self.listing.root}")
        try:
            file = self._names.find(path)
        except AmbiguousName as error:
            return BadItem(name, escaped(path), "ambiguous_name", f"{where}: {error}")
        if not is_text(path) and not file.exists():
            return malformed(self.manifest, number, "the path is not UTF-8, and no file has this name")
        return file

    def _problem(self, number: int, name: str, file: Path, captions: list[str], caption: Any) -> BadItem | None:
        where = f"line {number} of {self.manifest.name}"
        if not captions:
            return BadItem(name, escaped(file), "no_caption",
                           f"{where}: expected a sentence under caption, found {no_words(caption)}")
        if name in self._ids:
            return BadItem(name, escaped(file), "duplicate_id", f"{where}: the id occurs before")
        return None


def _without_suffix(path: PurePath) -> str:
    return escaped(str(path).removesuffix(path.suffix))


def _words(value: Any, separator: str | None) -> list[str]:
    items = value if isinstance(value, list) else re.split(separator, value) if separator and isinstance(
        value, str) else [value]
    return list(dict.fromkeys(
        item.strip() for item in items
        if isinstance(item, str) and item.strip() and is_text(item) and not is_missing(item)))


def _plain(value: Any) -> str:
    """A value of a further column as text; structures as JSON, nothing as nothing."""
    if value is None:
        return ""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if is_text(text) and not is_missing(text) else ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _manifest_path(root: Path, split: str, files: Mapping[str, str] | None) -> Path:
    if split not in SPLITS:
        raise MusiccmError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if not root.is_dir():
        raise MusiccmError(f"{root}: no such corpus folder; expected a manifest and the audio that it names")
    if files is not None:
        if split not in files:
            raise MusiccmError(f"{root}: files names no manifest of the {split} split; it has {', '.join(files)}")
        path = FileNames(root).find(files[split])
        if path.suffix not in SUFFIXES:
            raise MusiccmError(f"{path}: expected a manifest that ends in {', '.join(SUFFIXES)}")
        return path
    found = [path for suffix in SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        raise MusiccmError(f"{root}: expected one of {', '.join(split + suffix for suffix in SUFFIXES)}, found "
                           f"{' and '.join(path.name for path in found) or 'none'}; name it under files")
    return found[0]
