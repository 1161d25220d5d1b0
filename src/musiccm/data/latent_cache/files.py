"""The latent cache on the disk: what it depends on, its files, and writing them in units that any process can take.

A folder with `index.json` (what the cache was made from), `index.safetensors` (which windows and words it holds),
`shard-<n>.safetensors` (`mean` and `std` of the raw latents in float16, [n, C, T, F], and `clap_audio`, [n, D] in
float32) and `text-<n>.safetensors` (`clap_text`, [captions, D] in float32). The files follow from the index alone, not
from who writes them or in which order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musiccm.audio.windows import Conversion
from musiccm.data.corpora.labels import Clip
from musiccm.data.latent_cache.fingerprint import clips_fingerprint
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.errors import MusiccmError
from musiccm.files import sweep, write_atomically, write_json
from musiccm.texts import load_json

FORMAT = 2
INDEX, COLUMNS = "index.json", "index.safetensors"
#: How many more captions a text file holds than a shard holds windows: they are that much smaller.
CAPTIONS_PER_WINDOW = 16
_HALF = ("mean", "std")


def cache_key(
    clips: Sequence[Clip],
    clip_samples: int,
    sample_rate_hz: int,
    windows_per_track: int,
    model: str | None,
    conversion: Conversion | None = None,
) -> dict[str, Any]:
    """What a cache depends on; `model` None leaves the model unchecked."""
    return {
        "format": FORMAT,
        "corpus": clips_fingerprint(clips),
        "model": model,
        "clip_samples": clip_samples,
        "sample_rate_hz": sample_rate_hz,
        "windows_per_track": windows_per_track,
        **asdict(conversion or Conversion()),
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """In what a cache's key is not the one that is expected; one of an older format is not compared further."""
    if found.get("format") != FORMAT:
        return [f"its format is {found.get('format')}, this version of musiccm reads and writes {FORMAT}"]
    return [
        f"{name} is {found.get(name)!r}, expected {value!r}"
        for name, value in expected.items() if value is not None and found.get(name) != value
    ]


def read_index(folder: Path) -> dict[str, Any] | None:
    """The content of a cache's `index.json`; None where there is none.

    Raises:
        MusiccmError: It is not an index.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = load_json(path.read_text(encoding="utf-8"))
        index["key"]["format"], index["shard_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MusiccmError(f"{path}: not the index of a latent cache ({error!r}); remove the folder") from error
    return index


def file_counts(index: WindowIndex, shard_size: int) -> dict[str, int]:
    """How many files of each kind a cache consists of."""
    texts = shard_size * CAPTIONS_PER_WINDOW
    return {"shard": -(-len(index) // shard_size), "text": -(-len(index.captions) // texts)}


def file_path(folder: Path, kind: str, number: int) -> Path:
    """Where a `shard` or `text` file lies."""
    return folder / f"{kind}-{number:05d}.safetensors"


@dataclass(frozen=True)
class Unit:
    """A file of a cache, the smallest piece of work.

    Args:
        kind: `shard` or `text`.
        number: Of the file.
        first: The first row, or caption, in it.
        last: The first one behind it.
    """

    kind: str
    number: int
    first: int
    last: int


class CacheWriter:
    """Writes a cache unit by unit.

    Args:
        folder: The cache.
        key: From `cache_key`.
        index: Its windows.
        shard_size: Windows in a file; a cache that was begun keeps its own.
    """

    def __init__(self, folder: Path, key: dict[str, Any], index: WindowIndex, shard_size: int = 256) -> None:
        self.folder, self.key, self.index = folder, key, index
        begun = read_index(folder)
        same = begun is not None and not differences(begun["key"], key)
        self.shard_size = begun["shard_size"] if same and begun is not None else shard_size
        made_from = json.dumps([key, self.shard_size], sort_keys=True).encode()
        # A single entry: safetensors writes several in any order.
        self._stamp = {"cache": hashlib.blake2b(made_from, digest_size=16).hexdigest()}

    def begin(self, overwrite: bool = False) -> None:
        """Write the index; one process does this before any writes a unit.

        Args:
            overwrite: Replace a cache that was made from something else.

        Raises:
            MusiccmError: The folder holds a cache of something else, or the disk is full.
        """
        begun = read_index(self.folder)
        if begun is not None and (reasons := differences(begun["key"], self.key)):
            if not overwrite:
                raise MusiccmError(f"{self.folder}: holds latents of something else: {'; '.join(reasons)}. Choose "
                                   "another data.cache_dir, or encode again with --overwrite")
            # The index goes first: without it, what remains after a kill is no cache.
            (self.folder / INDEX).unlink()
            for path in [*self.folder.glob("shard-*.safetensors"), *self.folder.glob("text-*.safetensors")]:
                path.unlink()
            begun = None
        sweep(self.folder)
        if begun is None or not (self.folder / COLUMNS).is_file():
            self.index.save(self.folder / COLUMNS)
            counts = {"windows": len(self.index), "clips": len(self.index.clip_ids),
                      "captions": len(self.index.captions)}
            write_json(self.folder / INDEX, {"key": self.key, "shard_size": self.shard_size, **counts})

    def units(self) -> list[Unit]:
        """All units, whether written or not."""
        sizes = {"shard": (self.shard_size, len(self.index)),
                 "text": (self.shard_size * CAPTIONS_PER_WINDOW, len(self.index.captions))}
        return [
            Unit(kind, number, first, min(first + size, total))
            for kind, (size, total) in sizes.items() for number, first in enumerate(range(0, total, size))
        ]

    def is_written(self, unit: Unit) -> bool:
        """Whether a unit's file is there, whole and of this very cache."""
        try:
            with safe_open(file_path(self.folder, unit.kind, unit.number), framework="pt") as file:
                return file.metadata() == self._stamp
        except (OSError, SafetensorError):
            return False

    def write(self, unit: Unit, tensors: dict[str, Tensor]) -> None:
        """Write a unit, whole or not at all.

        Args:
            unit: Which one.
            tensors: `mean`, `std` and `clap_audio` of its windows, or `clap_text` of its captions.

        Raises:
            MusiccmError: A value is NaN or does not fit float16, or the disk is full.
        """
        path = file_path(self.folder, unit.kind, unit.number)
        stored = {}
        for name, tensor in tensors.items():
            stored[name] = tensor.detach().to("cpu", torch.float16 if name in _HALF else torch.float32).contiguous()
            if not torch.isfinite(stored[name]).all():
                bad = unit.first + int((~torch.isfinite(stored[name].flatten(1)).all(1)).nonzero()[0])
                what = repr(self.index.captions[bad]) if unit.kind == "text" else self.window_id(bad)
                raise MusiccmError(f"{path}: {name} is NaN or beyond the range of float16 for {what}; check the "
                                   "bundle's vae and text_encoder")
        write_atomically(path, lambda temporary: save_file(stored, temporary, metadata=self._stamp))

    def window_id(self, row: int) -> str:
        """The id of a window."""
        return self.index.id(row, self.index.clip_of(row))
