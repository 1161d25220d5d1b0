"""Beyond ten million windows: FAISS finds candidates, and their cosines are taken exactly from the index's rows.

A flat FAISS index compares everything and misses nothing but float32's near-equals. An inverted file (`IVF...`) looks
at some of its lists alone: a nearest clip may be missed, so SIM_AA found through it is a lower bound.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musiccm.errors import MusiccmError
from musiccm.files import naming_full_disk, write_atomically, write_json
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.nearest import Neighbours, Queries, rescore
from musiccm.texts import load_json

FAISS_FILE, ABOUT_FILE = "faiss.index", "faiss.json"
# Rows that an inverted file learns its lists from, and that are added at a time.
_TRAIN_ROWS, _ADD_ROWS = 262_144, 65_536


def import_faiss() -> Any:
    """The optional library.

    Returns:
        The module `faiss`.

    Raises:
        MusiccmError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MusiccmError("FAISS is not installed; run `pip install 'musiccm[faiss]'`, or leave --faiss out: the "
                           "exact search needs nothing, and takes seconds per million windows") from error
    return faiss


def default_factory(rows: int) -> str:
    """An inverted file with about four lists per square root of its rows, and all numbers of a row in 16 bits."""
    return f"IVF{max(1, min(rows // 39, round(4 * math.sqrt(rows))))},SQfp16"


def build_faiss(index: TrainingIndex, factory: str | None = None) -> str:
    """Write a FAISS index of all rows into the index's folder.

    Args:
        index: The training clips.
        factory: FAISS' description of it, such as `Flat` or `IVF4096,SQfp16`; see `default_factory`.

    Returns:
        The description that was used.

    Raises:
        MusiccmError: FAISS is not installed, or does not understand the description.
    """
    faiss = import_faiss()
    factory = factory or default_factory(index.n_rows)
    try:
        built = faiss.index_factory(index.width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise MusiccmError(f"--faiss {factory}: FAISS does not understand it ({reason}); expected such as Flat or "
                           "IVF4096,SQfp16") from error
    if not built.is_trained:
        sample = np.linspace(0, index.n_rows - 1, min(_TRAIN_ROWS, index.n_rows)).astype(np.int64)
        try:
            built.train(np.concatenate([index.read(int(row), int(row) + 1).numpy() for row in sample]))
        except RuntimeError as error:
            raise MusiccmError(f"--faiss {factory}: cannot be trained on {len(sample)} rows "
                               f"({str(error).splitlines()[-1]}); ask for fewer lists, or for Flat") from error
    for first in range(0, index.n_rows, _ADD_ROWS):
        built.add(np.ascontiguousarray(index.read(first, min(first + _ADD_ROWS, index.n_rows)).numpy()))
    with naming_full_disk(index.folder / FAISS_FILE):
        write_atomically(index.folder / FAISS_FILE, lambda path: faiss.write_index(built, str(path)))
    write_json(index.folder / ABOUT_FILE, {"factory": factory, "digest": index.digest, "rows": index.n_rows})
    return factory


class FaissSearch:
    """Searches with the FAISS index beside an index of training clips.

    Args:
        index: The training clips.
        nprobe: Lists of an inverted file that a query looks at.

    Attributes:
        description: What was searched, for a report.
        exact: Whether every row is looked at.

    Raises:
        MusiccmError: FAISS is not installed; there is no FAISS index, or one of other rows.
    """

    def __init__(self, index: TrainingIndex, nprobe: int = 64) -> None:
        faiss = import_faiss()
        about, path = _read_about(index.folder), index.folder / FAISS_FILE
        if about is None or not path.is_file():
            raise MusiccmError(f"{path}: no FAISS index here; write it with `musiccm prepare index --out "
                               f"{index.folder} --faiss ...`")
        if about.get("digest") != index.digest:
            raise MusiccmError(f"{path}: built from other rows than the index beside it; run `musiccm prepare index "
                               f"--out {index.folder} --faiss ...` again")
        try:
            self._faiss = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise MusiccmError(f"{path}: damaged ({reason}); remove it and write it again") from error
        self.index, factory = index, str(about["factory"])
        lists = getattr(faiss.downcast_index(self._faiss), "nlist", None)
        if lists is not None:
            nprobe = min(nprobe, lists)
            faiss.ParameterSpace().set_index_parameter(self._faiss, "nprobe", nprobe)
        self.exact = factory == "Flat"
        self.description = f"FAISS {factory}" + (f", {nprobe} of {lists} lists" if lists is not None else "")

    def nearest_clips(self, queries: Queries, k: int = 1, candidates: int = 64) -> Neighbours:
        """As `musiccm.similarity.nearest.nearest_clips`, among the clips of the rows that FAISS finds.

        Args:
            queries: The clips to search for.
            k: Training clips to find for each.
            candidates: Rows that FAISS is asked for, for each query window.

        Returns:
            The neighbours, with cosines in float64.
        """
        self.index.refuse_width(queries.rows.shape[1])
        _, rows = self._faiss.search(queries.rows.float().cpu().numpy(), min(max(candidates, 8 * k), self.index.n_rows))
        clip_of = np.where(rows < 0, -1, np.searchsorted(self.index.first_row, rows, side="right") - 1)
        found = []
        for query in range(len(queries)):
            clips = np.unique(clip_of[queries.first[query] : queries.first[query + 1]])
            found.append(clips[(clips >= 0) & (clips != queries.exclude[query])])
        width = max(1, *(len(clips) for clips in found)) if found else 1
        table = np.full((len(queries), width), -1, dtype=np.int64)
        for line, clips in zip(table, found, strict=True):
            line[: len(clips)] = clips
        return rescore(self.index, queries, torch.from_numpy(table), k)


def _read_about(folder: Path) -> dict[str, Any] | None:
    try:
        content = load_json((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "factory" in content else None
