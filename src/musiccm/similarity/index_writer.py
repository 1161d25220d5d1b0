"""Writing an index of training clips, shard by shard, so that a killed run goes on after its last whole one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musiccm.columns import StringColumn
from musiccm.errors import MusiccmError
from musiccm.files import sweep, write_atomically, write_json
from musiccm.metrics.text_audio import unit_rows
from musiccm.similarity.index import COLUMNS_FILE, FORMAT, INDEX_FILE, read_index_file, rows_path

SHARD_ROWS = 2048


class PlannedClip(NamedTuple):
    """A clip to be embedded.

    Args:
        id: Its id.
        path: Its audio file.
        starts_s: Where its windows begin, at least one.
        samples: Hash of its samples, by which the same audio is known under another id.
    """

    id: str
    path: str
    starts_s: Sequence[float]
    samples: str = ""


def write_index(
    folder: Path,
    key: dict[str, Any],
    about: dict[str, Any],
    clips: Sequence[PlannedClip],
    width: int,
    embed: Callable[[int, int], Tensor],
    overwrite: bool = False,
    skipped: Callable[[int], Any] = lambda rows: None,
    shard_rows: int = SHARD_ROWS,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Embed clips and write their rows.

    Args:
        folder: The index.
        key: What it is made from; another key in the folder is refused.
        about: What a reader wants to know besides.
        clips: The clips, in order.
        width: Numbers in a row.
        embed: `(first, last)` gives the rows of clips `first` to `last`, `[rows, D]`; a zero row for a silent window.
        overwrite: Replace an index that was made from something else.
        skipped: Told the number of rows of each shard that was found done.
        shard_rows: Rows of a shard, more only where a single clip has more.
        dtype: Of the rows on the disk, float32 or float16. A cosine with a float16 row is off by 2^-11 at most.

    Raises:
        MusiccmError: No clip; the folder holds an index of something else; `embed` gave another shape or NaN; the disk
            is full.
    """
    sweep(folder)
    if not clips:
        raise MusiccmError(f"{folder}: expected training clips to index, found none; check the experiment or folder")
    if any("\0" in clip.id or not clip.id or not len(clip.starts_s) for clip in clips):
        raise MusiccmError(f"{folder}: every clip needs an id and at least one window")
    key = {"format": FORMAT, **key}
    if dtype != torch.float32:
        key["dtype"] = str(dtype).removeprefix("torch.")
    first_row = np.concatenate([[0], np.cumsum([len(clip.starts_s) for clip in clips])]).astype(np.int64)
    shards = _shards(first_row, shard_rows)
    digest = hashlib.sha256(json.dumps([key, width, shards], sort_keys=True).encode()).hexdigest()
    found = read_index_file(folder)
    if found is not None and found["digest"] != digest:
        _replace(folder, found, key, overwrite)
        found = None
    if found is None:
        _write_columns(folder, clips, first_row, digest)
        # Last: with it the folder is an index, though its shards are still to come.
        write_json(folder / INDEX_FILE, {"key": key, "about": about, "width": width, "digest": digest,
                                         "shards": shards})
    elif not _is_whole(folder / COLUMNS_FILE, digest):
        _write_columns(folder, clips, first_row, digest)
    silent = 0
    for number, (first, last) in enumerate(shards):
        path, rows = rows_path(folder, number), int(first_row[last] - first_row[first])
        if (known := _silent_windows(path, digest)) is not None:
            skipped(rows)
            silent += known
            continue
        silent += _write_rows(path, embed(first, last), rows, width, digest, clips[first].id, dtype)
    content = read_index_file(folder)
    assert content is not None
    write_json(folder / INDEX_FILE, {**content, "about": {**about, "silent_windows": silent}})


def _shards(first_row: np.ndarray, shard_rows: int) -> list[list[int]]:
    """Ranges of whole clips with at most `shard_rows` rows, or one clip."""
    shards, begin, clips = [], 0, len(first_row) - 1
    while begin < clips:
        last = max(begin + 1, int(np.searchsorted(first_row, first_row[begin] + shard_rows, side="right")) - 1)
        shards.append([begin, last])
        begin = last
    return shards


def _replace(folder: Path, found: dict[str, Any], key: dict[str, Any], overwrite: bool) -> None:
    if not overwrite:
        differing = [f"{name} is {found['key'].get(name)!r}, expected {value!r}" for name, value in key.items()
                     if found["key"].get(name) != value] or ["the shards are cut otherwise"]
        raise MusiccmError(f"{folder}: holds an index of something else: {'; '.join(differing)}. Choose another --out, "
                           "or build it again with --overwrite")
    (folder / INDEX_FILE).unlink()
    for path in [folder / COLUMNS_FILE, *folder.glob("rows-*.safetensors"), *folder.glob("faiss.*")]:
        path.unlink(missing_ok=True)


def _write_columns(folder: Path, clips: Sequence[PlannedClip], first_row: np.ndarray, digest: str) -> None:
    columns = {"first_row": first_row, "start_s": np.concatenate([np.asarray(c.starts_s, np.float64) for c in clips])}
    for name, strings in (("id", [clip.id for clip in clips]), ("path", [clip.path for clip in clips]),
                          ("samples", [clip.samples for clip in clips])):
        packed = StringColumn.pack(strings)
        columns[f"{name}_text"], columns[f"{name}_ends"] = packed.data_X, packed.ends_N1
    tensors = {name: torch.from_numpy(column.copy()) for name, column in columns.items()}
    write_atomically(folder / COLUMNS_FILE, lambda path: save_file(tensors, path, metadata={"digest": digest}))


def _is_whole(path: Path, digest: str) -> bool:
    """Whether a file is there, whole and of this very index."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("digest") == digest
    except (OSError, SafetensorError):
        return False


def _silent_windows(path: Path, digest: str) -> int | None:
    """How many silent windows a finished shard has; None for a missing, damaged or foreign one."""
    if not _is_whole(path, digest):
        return None
    with safe_open(path, framework="pt") as file:
        # Earlier versions had it beside the digest, where safetensors writes several entries in any order.
        return int(file.get_tensor("silent")) if "silent" in file.keys() else int(file.metadata()["silent"])


def _write_rows(path: Path, rows_ND: Tensor, rows: int, width: int, digest: str, first_id: str,
                dtype: torch.dtype) -> int:
    """Write a shard, and count its silent windows."""
    unit = unit_rows(rows_ND.detach().cpu()).float().contiguous()
    finite = bool(torch.isfinite(unit).all())
    if unit.shape != (rows, width) or not finite:
        raise MusiccmError(f"{path}: expected {rows} finite rows of {width} numbers from CLAP, found shape "
                           f"{list(unit.shape)}{'' if finite else ', with NaN'}, from clip {first_id} on; check the "
                           "CLAP weights")
    silent = int((unit == 0).all(dim=1).sum())
    tensors = {"audio": unit.to(dtype), "silent": torch.tensor(silent)}
    # A single entry: safetensors writes several in any order, and the index would not be the same bytes twice.
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"digest": digest}))
    return silent
