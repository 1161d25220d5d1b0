"""Published lists of which clip belongs to which part of MagnaTagATune."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np

from musiccm.data.corpora.text_tables import read_text
from musiccm.data.names import with_slashes
from musiccm.errors import MusiccmError

_NAMES = {"train": ("train",), "validation": ("valid", "validation", "val"), "test": ("test",)}


def read_split_list(folder: Path, split: str) -> set[str]:
    """Read the list of one split: lines of `id<tab>path`.

    The ids of published lists count rows of the publisher's own arrays; only the paths name clips.

    Args:
        folder: Holds `train.npy`, `valid.npy`, `test.npy` (as minzwon/sota-music-tagging-models has them), or the same
            lines as text in `.tsv` or `.txt`.
        split: `"train"`, `"validation"` or `"test"`.

    Returns:
        `<folder>/<name>` of each clip, without suffix.

    Raises:
        MusiccmError: There is no list, it is a pickle, or a line of it is not of that form.
    """
    for name in _NAMES[split]:
        for suffix in (".npy", ".tsv", ".txt"):
            path = folder / f"{name}{suffix}"
            if path.is_file():
                lines = _array(path) if suffix == ".npy" else read_text(path, "lines of id<tab>path").splitlines()
                return {_stem(path, number, line) for number, line in enumerate(lines, 1) if line.strip()}
    if pickles := sorted(folder.glob("*.cP")):
        raise MusiccmError(f"{pickles[0]}: a Python pickle, which runs code when it is read, and is refused; use the "
                           "train.npy, valid.npy and test.npy of minzwon/sota-music-tagging-models, or write the "
                           "paths to .tsv files as id<tab>path")
    raise MusiccmError(f"{folder}: no list of the {split} split; expected {_NAMES[split][0]}.npy, .tsv or .txt")


def _array(path: Path) -> list[str]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "it holds Python objects, which run code when they are read" if "llow_pickle" in str(error) else error
        raise MusiccmError(f"{path}: refused: {reason}; expected a NumPy array of strings id<tab>path") from error
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise MusiccmError(f"{path}: expected a list of strings id<tab>path, found shape {list(array.shape)} of "
                           f"{array.dtype}")
    return [os.fsdecode(item) if isinstance(item, bytes) else str(item) for item in array]


def _stem(path: Path, number: int, line: str) -> str:
    cells = line.rstrip("\r\n").split("\t")
    parts = PurePosixPath(with_slashes(cells[-1])).parts
    if len(cells) != 2 or len(parts) < 2:
        raise MusiccmError(f"{path}: line {number}: expected id<tab>folder/name, found {line[:80]!r}")
    return str(PurePosixPath(*parts[-2:]).with_suffix(""))
