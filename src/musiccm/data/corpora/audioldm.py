"""Corpora as AudioLDM's training code describes them, in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musiccm.data.corpora.manifest import Collector
from musiccm.data.corpora.reading import Listing
from musiccm.data.corpora.text_tables import is_missing, read_table
from musiccm.data.names import FileNames
from musiccm.errors import MusiccmError
from musiccm.texts import read_json

# What AudioLDM's files call the splits.
_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def list_audioldm(root: str | Path, split: str, dataset: str | None = None) -> Listing:
    """List one split of a corpus as AudioLDM's training code describes it.

    `dataset_root.json` holds the folder of each data set under its name, and under `metadata.path` the JSON of each
    split: `{"data": [{"wav": ..., "caption": ..., "labels": ...}]}` with `wav` relative to the folder. `labels` are ids
    separated by commas; where `class_label_indices` names AudioSet's table of them, tags are their names.

    Args:
        root: `dataset_root.json`, or the folder that it lies in.
        split: `"train"`, `"validation"` (there `val`) or `"test"`.
        dataset: Which data set; needed only where the file names several.

    Returns:
        The listing, whose root is the data set's folder.

    Raises:
        MusiccmError: A file is missing or has another form.
    """
    index, folder, splits = _index(root, dataset)
    file = next((splits[key] for key in _NAMES.get(split, ()) if isinstance(splits.get(key), str)), None)
    if file is None:
        raise MusiccmError(f"{index}: no {split} split; it has {', '.join(map(str, splits))}")
    path, folder_path = _beside(index, file), _beside(index, folder)
    items = read_json(path, "the clips of a split", "surrogateescape").get("data")
    if not isinstance(items, list):
        raise MusiccmError(f"{path}: expected a list under data, found {type(items).__name__}")
    collected = Collector(folder_path, split, path)
    names = _label_names(index, splits.get("class_label_indices"), collected.listing)
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            # seg_label is unused by AudioLDM itself, and holds paths.
            item = {**{k: v for k, v in item.items() if k not in ("wav", "labels", "seg_label")},
                    "path": item.get("wav"), "tags": _tags(item.get("labels"), names)}
        collected.add(number, item)
    return collected.listing


def audioldm_has(root: str | Path, dataset: str | None = None, split: str = "test") -> bool:
    """Whether AudioLDM's index names a file for a split."""
    splits = _index(root, dataset)[2]
    return any(isinstance(splits.get(key), str) for key in _NAMES[split])


def _index(root: str | Path, dataset: str | None) -> tuple[Path, str, dict[str, Any]]:
    """`(the index, folder of the data set, its split files by name)`."""
    index = Path(root)
    index = index / "dataset_root.json" if index.is_dir() else index
    document = read_json(index, "the index of AudioLDM's data sets", "surrogateescape")
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


def _label_names(index: Path, file: Any, listing: Listing) -> dict[str, str]:
    """Names by id from a table with the columns `mid` and `display_name`, as AudioSet's; none without a table."""
    if not isinstance(file, str) or not file.strip():
        return {}
    path = _beside(index, file)
    if not path.is_file():
        listing.notes.append(f"{path}, which class_label_indices names, is missing: tags are the ids of the labels")
        return {}
    table = read_table(path)
    if missing := {"mid", "display_name"} - set(table.header):
        raise MusiccmError(f"{path}: no column {' or '.join(sorted(missing))}; expected AudioSet's table of labels "
                           f"with index, mid and display_name, found {', '.join(table.header)}")
    mid, name = table.header.index("mid"), table.header.index("display_name")
    return {cells[mid].strip(): cells[name].strip() for _, cells in table.rows}


def _tags(labels: Any, names: dict[str, str]) -> Any:
    """Ids, in a string with commas or in a list, as a list of their names; an id that the table lacks stays."""
    ids = labels.split(",") if isinstance(labels, str) else labels if isinstance(labels, list) else []
    return [names.get(id_.strip(), id_) for id_ in ids if isinstance(id_, str) and not is_missing(id_)]


def _beside(index: Path, path: str) -> Path:
    """A path of dataset_root.json: relative to its folder or, as AudioLDM runs from above it, to one further up."""
    folders = index.absolute().parents
    return next((found for folder in folders if (found := FileNames(folder).find(path)).exists()), folders[0] / path)
