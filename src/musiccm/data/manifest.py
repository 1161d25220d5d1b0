"""Corpora that name their files in a manifest: CSV or JSON lines, and the JSON of AudioLDM's training code."""

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
# What AudioLDM's files call the splits.
_AUDIOLDM_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


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
    collected = _Collector(root, split, path)
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


def list_audioldm(root: str | Path, split: str, dataset: str | None = None) -> Listing:
    """List one split of a corpus as AudioLDM's training code describes it.

    `dataset_root.json` holds the folder of each data set under its name, and under `metadata.path` the JSON of each
    split: `{"data": [{"wav": ..., "caption": ..., "labels": ...}]}` with `wav` relative to the folder.

    Args:
        root: `dataset_root.json`, or the folder that it lies in.
        split: `"train"`, `"validation"` (there `val`) or `"test"`.
        dataset: Which data set; needed only where the file names several.

    Returns:
        The listing, whose root is the data set's folder.

    Raises:
        MusiccmError: A file is missing or has another form.
    """
    index, folder, splits = _audioldm_index(root, dataset)
    file = next((splits[key] for key in _AUDIOLDM_NAMES.get(split, ()) if isinstance(splits.get(key), str)), None)
    if file is None:
        raise MusiccmError(f"{index}: no {split} split; it has {', '.join(map(str, splits))}")
    path, folder_path = _beside(index, file), _beside(index, folder)
    items = _json_object(path).get("data")
    if not isinstance(items, list):
        raise MusiccmError(f"{path}: expected a list under data, found {type(items).__name__}")
    collected = _Collector(folder_path, split, path)
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            # seg_label is unused by AudioLDM itself, and holds paths.
            item = {**{k: v for k, v in item.items() if k not in ("wav", "labels", "seg_label")},
                    "path": item.get("wav"), "tags": item.get("labels", "")}
        collected.add(number, item)
    return collected.listing


def manifest_has(root: str | Path, files: Mapping[str, str] | None = None, split: str = "test") -> bool:
    """Whether a corpus with plain manifests has one for a split."""
    return split in files if files is not None else any((Path(root) / f"{split}{s}").is_file() for s in SUFFIXES)


def audioldm_has(root: str | Path, dataset: str | None = None, split: str = "test") -> bool:
    """Whether AudioLDM's index names a file for a split."""
    splits = _audioldm_index(root, dataset)[2]
    return any(isinstance(splits.get(key), str) for key in _AUDIOLDM_NAMES[split])


def _audioldm_index(root: str | Path, dataset: str | None) -> tuple[Path, str, dict[str, Any]]:
    """`(the index, folder of the data set, its split files by name)`."""
    index = Path(root)
    index = index / "dataset_root.json" if index.is_dir() else index
    document = _json_object(index)
    metadata = document.get("metadata")
    paths = metadata.get("path") if isinstance(metadata, dict) else None
    if not isinstance(paths, dict) or not paths:
        raise MusiccmError(f"{index}: expected metadata.path with the split files of each data set, found none")
    if dataset is None and len(paths) > 1:
        raise MusiccmError(f"{index}: holds {', '.join(map(str, paths))}; name one with dataset")
    name = dataset if dataset is not None else next(iter(paths))
    folder, splits = document.get(name), paths.get(name)
    if not isinstance(folder, str) or not isinstance(splits, dict):
        raise MusiccmError(f"{index}: expected a folder and split files for the data set {name!r}; it names "
                           f"{', '.join(map(str, paths))}")
    return index, folder, splits


class _Collector:
    """Turns rows into entries; what is wrong with one goes to the listing."""

    def __init__(self, root: Path, split: str, manifest: Path) -> None:
        if not root.is_dir():
            raise MusiccmError(f"{root}: no such corpus folder, which {manifest} describes")
        self.listing = Listing(root, split)
        self.manifest = manifest
        self._by_path: dict[str, Entry] = {}
        self._ids: set[str] = set()

    def add(self, number: int, row: Any) -> None:
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


def _beside(index: Path, path: str) -> Path:
    """A path of dataset_root.json: relative to its folder or, as AudioLDM runs from above it, to one further up."""
    folders = index.absolute().parents
    return next((folder / path for folder in folders if (folder / path).exists()), folders[0] / path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MusiccmError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise MusiccmError(f"{path}: expected a JSON object, found a {type(document).__name__}")
    return document
