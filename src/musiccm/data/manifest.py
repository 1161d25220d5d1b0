"""Corpora that name their files in a manifest: CSV or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from musiccm.data.reading import Entry, Listing
from musiccm.data.report import BadItem
from musiccm.data.tables import inside_root, is_text, malformed, read_table, read_text
from musiccm.errors import MusiccmError

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": None}
SPLITS = ("train", "validation", "test")


def list_manifest(root: str | Path, split: str, files: Mapping[str, str] | None = None) -> Listing:
    """List one split of a corpus with a plain manifest for each split.

    A row has `path` (relative to `root`) and `caption` (in JSON lines also a list of them). `tags` (in CSV separated by
    commas or semicolons, in JSON lines also a list) become tags, `id` the clip's id, and all other columns attributes.
    Rows with the same path are one clip with several captions.

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
    table = read_table(path, SUFFIXES[path.suffix] or ",")
    if missing := {"path", "caption"} - set(table.header):
        raise MusiccmError(f"{path}: no column {' or '.join(sorted(missing))}; expected path, caption and any others, "
                           f"found {', '.join(table.header)}")
    collected.listing.bad += table.bad
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
        self._by_path: dict[str, Entry] = {}
        self._ids: set[str] = set()

    def add(self, number: int, row: Any) -> None:
        """Take a row of a manifest in: `path`, `caption`, and whatever else it has."""
        if not isinstance(row, dict):
            self.listing.bad.append(malformed(self.manifest, number, "not a JSON object" if row is None else
                                              f"a {type(row).__name__}, expected a JSON object"))
            return
        path = row.get("path")
        if not isinstance(path, str) or not path.strip():
            self.listing.bad.append(malformed(self.manifest, number, "no path"))
            return
        path = path.strip()
        if not is_text(path + str(row.get("id", ""))) or "\0" in path:
            self.listing.bad.append(malformed(self.manifest, number, "the path is not sound text"))
            return
        captions = _words(row.get("caption"), separator=None)
        key = str(PurePosixPath(path))
        if (known := self._by_path.get(key)) is not None and captions:
            known.captions.extend(caption for caption in captions if caption not in known.captions)
            return
        name = str(row.get("id") or PurePosixPath(key).with_suffix("")).strip()
        problem = self._problem(number, name, path, captions)
        if problem is not None:
            self.listing.bad.append(problem)
            return
        kept = {key: value for key, value in row.items() if key not in ("path", "caption", "tags", "id")}
        attributes = {str(key): _plain(value) for key, value in kept.items() if _plain(value)}
        entry = Entry(name, self.listing.root / path, captions, _words(row.get("tags"), "[,;]"), attributes)
        self._ids.add(name)
        self._by_path[key] = entry
        self.listing.entries.append(entry)

    def _problem(self, number: int, name: str, path: str, captions: list[str]) -> BadItem | None:
        where = f"line {number} of {self.manifest.name}"
        if not inside_root(path):
            return BadItem(name, path, "outside_root", f"{where}: expected a path relative to {self.listing.root}")
        if not captions:
            return BadItem(name, str(self.listing.root / path), "no_caption", f"{where}: no sentence under caption")
        if name in self._ids:
            return BadItem(name, str(self.listing.root / path), "duplicate_id", f"{where}: the id occurs before")
        return None


def _words(value: Any, separator: str | None) -> list[str]:
    items = value if isinstance(value, list) else re.split(separator, value) if separator and isinstance(
        value, str) else [value]
    return list(dict.fromkeys(
        item.strip() for item in items if isinstance(item, str) and item.strip() and is_text(item)))


def _plain(value: Any) -> str:
    """A value of a further column as text; structures as JSON, nothing as nothing."""
    if value is None:
        return ""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if is_text(text) else ""


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
        path = root / files[split]
        if path.suffix not in SUFFIXES:
            raise MusiccmError(f"{path}: expected a manifest that ends in {', '.join(SUFFIXES)}")
        return path
    found = [path for suffix in SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        raise MusiccmError(f"{root}: expected one of {', '.join(split + suffix for suffix in SUFFIXES)}, found "
                           f"{' and '.join(path.name for path in found) or 'none'}; name it under files")
    return found[0]
