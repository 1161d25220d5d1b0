"""The index of training clips: their CLAP embeddings on disk, window by window, memory-mapped.

A folder: `index.json` says what it was made from; `columns.safetensors` holds a column a fact (first row of each clip,
start of each window, ids, paths and hashes of the samples as joined UTF-8 with their ends); `rows-<n>.safetensors` hold
the embeddings of whole clips, float32, of length 1, or zero where the window is silent, which is then similar to
nothing. In a bundle they are float16, and are brought back to length 1 when they are read.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from musiccm.columns import StringColumn
from musiccm.errors import MusiccmError
from musiccm.locks import LOCK, holder
from musiccm.metrics.text_audio import unit_rows
from musiccm.similarity.gallery import Gallery
from musiccm.texts import load_json

FORMAT = 1
INDEX_FILE, COLUMNS_FILE = "index.json", "columns.safetensors"
# Shards whose pages are mapped at a time: what was searched is let go.
_MAPPED = 4
_REBUILD = "run `musiccm prepare index` again"


def rows_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"rows-{number:05d}.safetensors"


def read_index_file(folder: Path) -> dict[str, Any] | None:
    """`index.json` of a folder; None where there is none.

    Args:
        folder: The index.

    Returns:
        Its content.

    Raises:
        MusiccmError: It is not the index of training clips, or of a format that this version does not read.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        found = content["key"]["format"], content["shards"], content["about"], content["width"], content["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MusiccmError(f"{path}: not an index of training clips ({error!r}); name the folder that `musiccm prepare "
                           "index` wrote, or remove it and run that again") from error
    if found[0] != FORMAT:
        raise MusiccmError(f"{path}: expected format {FORMAT}, found {found[0]}; {_REBUILD} with --overwrite")
    return content


class TrainingIndex(Gallery):
    """Opens an index; rows stay on the disk until they are read.

    Args:
        folder: The index.

    Attributes:
        key: What it was made from: `clap` (fingerprint), `corpus`, `preprocessing`, `window_samples`, `hop_samples`,
            `sample_rate_hz`.
        about: What a reader wants to know besides: `bundle`, `source`, `silent_windows` and so on.
        paths: Audio file of each clip; in a bundle, below the folder of its corpus.
        samples: Hash of each clip's samples (`AudioFacts.digest`); empty strings in an index that is older than they.
        digest: Hash of the key and of how the rows are cut into files.

    Raises:
        MusiccmError: The folder holds no index, an unfinished one, a damaged one, or one of zero clips.
    """

    unit = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        content = read_index_file(self.folder)
        if content is None:
            self._refuse_while_written()
            raise MusiccmError(f"{self.folder}: no index of training clips here (no {INDEX_FILE}); write one with "
                               f"`musiccm prepare index --out {self.folder} ...`")
        self.key: dict[str, Any] = content["key"]
        self.about: dict[str, Any] = content["about"]
        self.width = int(content["width"])
        self.digest: str = content["digest"]
        self._shards = np.asarray(content["shards"], dtype=np.int64)
        columns = self._open(self.folder / COLUMNS_FILE)
        self.first_row, self._starts_s = columns["first_row"].numpy(), columns["start_s"].numpy()
        self.ids = StringColumn(columns["id_text"].numpy(), columns["id_ends"].numpy())
        self.paths = StringColumn(columns["path_text"].numpy(), columns["path_ends"].numpy())
        self.samples = StringColumn(columns["samples_text"].numpy(), columns["samples_ends"].numpy()) if (
            "samples_text" in columns) else StringColumn.pack([""] * len(self.ids))
        if not self.n_clips or not self.n_rows:
            raise MusiccmError(f"{self.folder}: an index of zero clips; there is nothing to compare with. {_REBUILD} "
                               "on a folder or experiment with training audio")
        self._first_row_of_shard = self.first_row[self._shards[:, 0]]
        missing = [path.name for n in range(len(self._shards)) if not (path := rows_path(self.folder, n)).is_file()]
        if missing:
            self._refuse_while_written()
            raise MusiccmError(f"{self.folder}: {len(missing)} of {len(self._shards)} shards are missing, first "
                               f"{missing[0]}; {_REBUILD}, it goes on where it stopped")
        self._mapped: OrderedDict[int, Tensor] = OrderedDict()

    def _refuse_while_written(self) -> None:
        if who := holder(self.folder / LOCK):
            raise MusiccmError(f"{self.folder}: the index is being written by {who}; wait until that has ended")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": OrderedDict()}

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingIndex:
        return self  # nothing in it changes

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return self.key["window_samples"] / self.key["sample_rate_hz"]

    def start_s(self, row: int) -> float:
        """Where in its clip the window of a row begins, in seconds."""
        return float(self._starts_s[row])

    def refuse_other_clap(self, fingerprint: str) -> None:
        """Refuse embeddings of another CLAP, whose cosines with these rows would mean nothing.

        Args:
            fingerprint: Of the CLAP that embeds the queries.

        Raises:
            MusiccmError: It is another.
        """
        if fingerprint != self.key["clap"]:
            raise MusiccmError(
                f"{self.folder}: this index was built with another CLAP: its weights and preprocessing have the hash "
                f"{self.key['clap'][:16]} (from {self.about.get('bundle')}), those named now {fingerprint[:16]}. Name "
                "the CLAP that it was built with, or build the index again with this one")

    def read(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last`, float32, checked to be unit or zero.

        Args:
            first: First row.
            last: The row behind the last.

        Returns:
            `[last - first, D]`.

        Raises:
            MusiccmError: A shard is damaged.
        """
        parts, number = [], int(np.searchsorted(self._first_row_of_shard, first, side="right")) - 1
        while first < last:
            rows, begin = self._shard(number), int(self._first_row_of_shard[number])
            parts.append(rows[first - begin : last - begin])
            first, number = begin + len(rows), number + 1
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shard(self, number: int) -> Tensor:
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]
        path = rows_path(self.folder, number)
        rows = self._open(path)["audio"]
        if rows.dtype == torch.float16:
            rows = unit_rows(rows).float()
        expected = int(self.first_row[self._shards[number, 1]] - self.first_row[self._shards[number, 0]])
        lengths = torch.linalg.vector_norm(rows, dim=1)
        # NaN fails every comparison.
        if rows.shape != (expected, self.width) or not bool((((lengths - 1).abs() < 1e-4) | (lengths == 0)).all()):
            raise _damaged(path, f"expected {expected} rows of {self.width} numbers and of length 1, found shape "
                                 f"{list(rows.shape)}, lengths {float(lengths.min()):.3g} to "
                                 f"{float(lengths.max()):.3g}")
        self._mapped[number] = rows
        if len(self._mapped) > _MAPPED:
            self._mapped.popitem(last=False)
        return rows

    def _open(self, path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("digest") != self.digest:
                    raise _damaged(path, "it belongs to another index")
                return {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> MusiccmError:
    return MusiccmError(f"{path}: damaged ({reason}); remove this file and {_REBUILD}, which writes it anew")
