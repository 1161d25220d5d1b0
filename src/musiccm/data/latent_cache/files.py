"""The latent cache on the disk: what it depends on, its files, and writing them in units that any process can take.

A folder with `index.json` (what the cache was made from), `index.safetensors` (which windows and words it holds),
`shard-<n>.safetensors` (`mean` and `std` of the raw latents in float16, [n, C, T, F], and `clap_audio`, [n, D] in
float32) and `text-<n>.safetensors` (`clap_text`, [captions, D] in float32). The files follow from the index alone, not
from who writes them or in which order.

Of a bundle that conditions by tokens, shards have no `clap_audio`, and the index holds each distinct caption once. Its
tokens lie in `text-<n>.safetensors` end to end without padding: `tokens`, [all of them, D] in float16, and `lengths`,
[captions]. So a caption of 20 tokens costs 40 kB at FLAN-T5-large's width, however many windows and clips have it,
where padded to 77 for each window it would be 158 kB.

A cache of semantic tokens (`musiccm prepare tokens`) is of the same kind: its shards hold `semantic`, [n, L] in int32,
in place of `mean` and `std`, and `clap_audio`; its text files hold `clap_text`.
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

#: Of a cache with CLAP's vectors, of one with tokens of captions, and of one of semantic tokens.
FORMAT, TOKEN_FORMAT, SEMANTIC_FORMAT = 2, 3, 4
_HOLDS = {FORMAT: "a CLAP vector a caption", TOKEN_FORMAT: "tokens of captions",
          SEMANTIC_FORMAT: "semantic tokens and a CLAP vector a caption"}
INDEX, COLUMNS = "index.json", "index.safetensors"
#: How many more captions a text file holds than a shard holds windows, by format: they are that much smaller.
CAPTIONS_PER_WINDOW = {FORMAT: 16, TOKEN_FORMAT: 4, SEMANTIC_FORMAT: 16}
#: How tensors are stored that are not float32.
_STORED = {**dict.fromkeys(("mean", "std", "tokens"), torch.float16), "lengths": torch.int64, "semantic": torch.int32}


@dataclass(frozen=True)
class Wording:
    """How messages name a cache.

    Args:
        holds: What is in it.
        command: What writes it.
        key: Where an experiment names its folder.
    """

    holds: str
    command: str
    key: str


def wording(layout: int | None) -> Wording:
    """How messages name a cache of a format; None for one of latents."""
    if layout == SEMANTIC_FORMAT:
        return Wording("tokens", "musiccm prepare tokens", "data.tokens_dir")
    return Wording("latents", "musiccm prepare latents", "data.cache_dir")


def cache_key(
    clips: Sequence[Clip],
    clip_samples: int,
    sample_rate_hz: int,
    windows_per_track: int,
    model: str | None,
    conversion: Conversion | None = None,
    tokens: bool | None = False,
) -> dict[str, Any]:
    """What a cache depends on; `model` None leaves the model unchecked, `tokens` None what its captions are."""
    return {
        "format": None if tokens is None else TOKEN_FORMAT if tokens else FORMAT,
        "corpus": clips_fingerprint(clips),
        "model": model,
        "clip_samples": clip_samples,
        "sample_rate_hz": sample_rate_hz,
        "windows_per_track": windows_per_track,
        **asdict(conversion or Conversion()),
    }


def token_key(latents: dict[str, Any], model: str | None, tokenizer: str | None) -> dict[str, Any]:
    """What a cache of semantic tokens depends on.

    Args:
        latents: The key of a cache of latents of the same windows.
        model: Hash of the CLAP; None leaves it unchecked.
        tokenizer: The tokenizer's fingerprint; None leaves it unchecked.
    """
    return {**latents, "format": SEMANTIC_FORMAT, "model": model, "tokenizer": tokenizer}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """In what a cache's key is not the one that is expected; one of an older format is not compared further."""
    written, wanted = found.get("format"), expected.get("format")
    if written not in _HOLDS:
        known = " and ".join(map(str, _HOLDS)) if wanted is None else wanted
        return [f"its format is {written}, this version of musiccm reads and writes {known}"]
    if wanted != written and SEMANTIC_FORMAT in (wanted, written):
        # a format that is left open is one of latents
        what = "latents" if wanted is None else f"{wanted}, {_HOLDS[wanted]}"
        return [f"its format is {written}, with {_HOLDS[written]}; expected {what}"]
    if wanted not in (None, written):
        return [f"its format is {written}, with {_HOLDS[written]}, and the bundle's text encoder makes {wanted}, "
                f"{_HOLDS[wanted]}"]
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


def file_sizes(shard_size: int, layout: int) -> dict[str, int]:
    """How many windows, or captions, a file of each kind holds in a cache of a format."""
    return {"shard": shard_size, "text": shard_size * CAPTIONS_PER_WINDOW[layout]}


def file_counts(index: WindowIndex, shard_size: int, layout: int) -> dict[str, int]:
    """How many files of each kind a cache of a format consists of."""
    totals = {"shard": len(index), "text": len(index.captions)}
    return {kind: -(-totals[kind] // size) for kind, size in file_sizes(shard_size, layout).items()}


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
        key: From `cache_key`; one that leaves open what captions are is written with vectors.
        index: Its windows.
        shard_size: Windows in a file; a cache that was begun keeps its own.
    """

    def __init__(self, folder: Path, key: dict[str, Any], index: WindowIndex, shard_size: int = 256) -> None:
        self.folder, self.index = folder, index
        self.key = {**key, "format": FORMAT if key["format"] is None else key["format"]}
        begun = read_index(folder)
        same = begun is not None and not differences(begun["key"], self.key)
        self.shard_size = begun["shard_size"] if same and begun is not None else shard_size
        made_from = json.dumps([self.key, self.shard_size], sort_keys=True).encode()
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
                named = wording(self.key["format"])
                raise MusiccmError(f"{self.folder}: holds {named.holds} of something else: {'; '.join(reasons)}. "
                                   f"Choose another {named.key}, or encode again with --overwrite")
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
        totals = {"shard": len(self.index), "text": len(self.index.captions)}
        return [
            Unit(kind, number, first, min(first + size, totals[kind]))
            for kind, size in file_sizes(self.shard_size, self.key["format"]).items()
            for number, first in enumerate(range(0, totals[kind], size))
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
            tensors: `mean`, `std` and `clap_audio` of its windows, or `clap_text` of its captions; where these are
                tokens, no `clap_audio`, and `tokens` and `lengths`. `semantic` in place of `mean` and `std`.

        Raises:
            MusiccmError: A value is NaN or does not fit float16, or the disk is full.
        """
        path = file_path(self.folder, unit.kind, unit.number)
        stored = {}
        for name, tensor in tensors.items():
            stored[name] = tensor.detach().to("cpu", _STORED.get(name, torch.float32)).contiguous()
            if not torch.isfinite(stored[name]).all():
                row = int((~torch.isfinite(stored[name].flatten(1)).all(1)).nonzero()[0])
                if name == "tokens":  # of which caption
                    row = int(torch.searchsorted(tensors["lengths"].cpu().cumsum(0), row, right=True))
                bad = unit.first + row
                what = repr(self.index.captions[bad]) if unit.kind == "text" else self.window_id(bad)
                raise MusiccmError(f"{path}: {name} is NaN or beyond the range of float16 for {what}; check the "
                                   "bundle's vae and text_encoder")
        write_atomically(path, lambda temporary: save_file(stored, temporary, metadata=self._stamp))

    def window_id(self, row: int) -> str:
        """The id of a window."""
        return self.index.id(row, self.index.clip_of(row))
