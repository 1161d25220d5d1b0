"""The latent cache: moments of the VAE and CLAP embeddings of a corpus, computed once.

A folder with `index.json` (what it was made from, and each window's words) and `shard-<n>.safetensors`: `mean` and
`std` of the raw latents in float16, `clap_audio` [n, D] and `clap_text` [captions of the shard, D] in float32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musiccm.audio.windows import centred_start, resampled_length
from musiccm.data.fingerprint import clips_fingerprint
from musiccm.data.labels import Clip
from musiccm.errors import MusiccmError
from musiccm.files import write_atomically, write_json

log = logging.getLogger(__name__)

_FORMAT = 1
# Caches up to this size are read into memory whole.
_IN_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Window:
    """One encoded window of a clip.

    Args:
        id: The clip's id, with `@<n>` behind it where a clip has several windows.
        clip_id: The clip's id.
        start: First sample, at the rate of the cache.
        captions: The clip's captions.
        tags: The clip's tags.
    """

    id: str
    clip_id: str
    start: int
    captions: list[str]
    tags: list[str]


def plan_windows(clips: Sequence[Clip], clip_samples: int, sample_rate_hz: int, windows_per_track: int) -> list[Window]:
    """Which windows to encode: the centred one, or several spread evenly from the beginning to the end of the track."""
    windows = []
    for clip in clips:
        total = resampled_length(clip.audio, sample_rate_hz)
        room = max(0, total - clip_samples)
        if windows_per_track == 1:
            starts = [centred_start(total, clip_samples)]
        else:
            starts = sorted({round(room * n / (windows_per_track - 1)) for n in range(windows_per_track)})
        for number, start in enumerate(starts):
            name = clip.id if windows_per_track == 1 else f"{clip.id}@{number}"
            windows.append(Window(name, clip.id, start, clip.captions, clip.tags))
    return windows


def cache_key(
    clips: Sequence[Clip], clip_samples: int, sample_rate_hz: int, windows_per_track: int, model: str | None
) -> dict[str, Any]:
    """What a cache depends on; `model` None leaves the model unchecked."""
    return {
        "format": _FORMAT,
        "corpus": clips_fingerprint(clips),
        "model": model,
        "clip_samples": clip_samples,
        "sample_rate_hz": sample_rate_hz,
        "windows_per_track": windows_per_track,
    }


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {found.get(name)!r}, expected {value!r}"
        for name, value in expected.items() if value is not None and found.get(name) != value
    ]


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / "index.json"
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        index["key"], index["windows"], index["shard_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MusiccmError(f"{path}: not the index of a latent cache ({error!r}); remove the folder") from error
    return index


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _shard_is_whole(path: Path, ids: list[str]) -> bool:
    try:
        with safe_open(path, framework="pt") as shard:
            return (shard.metadata() or {}).get("ids") == json.dumps(ids)
    except (OSError, SafetensorError):
        return False


def write_cache(
    folder: Path,
    key: dict[str, Any],
    windows: Sequence[Window],
    encode: Callable[[list[Window]], dict[str, Tensor]],
    shard_size: int = 256,
    overwrite: bool = False,
    skipped: Callable[[int], Any] = lambda count: None,
) -> None:
    """Encode windows shard by shard; a run that was killed goes on after its last whole shard.

    Args:
        folder: The cache.
        key: From `cache_key`.
        windows: From `plan_windows`.
        encode: Gives `mean`, `std` [n, C, T, F], `clap_audio` [n, D] and `clap_text` [all captions in order, D].
        shard_size: Windows in a file.
        overwrite: Replace a cache that was made from something else.
        skipped: Told the number of windows of each shard that was found done.

    Raises:
        MusiccmError: The folder holds a cache of something else, or `encode` gave NaN, or the disk is full.
    """
    index = _read_index(folder)
    if index is not None and (reasons := _differences(index["key"], key)):
        if not overwrite:
            raise MusiccmError(f"{folder}: holds latents of something else: {'; '.join(reasons)}. Choose another "
                               "data.cache_dir, or encode again with --overwrite")
        (folder / "index.json").unlink()
        for shard in folder.glob("shard-*.safetensors"):
            shard.unlink()
        index = None
    if index is None:
        write_json(folder / "index.json",
                   {"key": key, "shard_size": shard_size, "windows": [asdict(window) for window in windows]})
    else:
        shard_size = index["shard_size"]
    for number, first in enumerate(range(0, len(windows), shard_size)):
        part = list(windows[first : first + shard_size])
        path, ids = _shard_path(folder, number), [window.id for window in part]
        if _shard_is_whole(path, ids):
            skipped(len(part))
        else:
            _write_shard(path, ids, encode(part))


def _write_shard(path: Path, ids: list[str], tensors: dict[str, Tensor]) -> None:
    stored = {}
    for name, tensor in tensors.items():
        dtype = torch.float16 if name in ("mean", "std") else torch.float32
        stored[name] = tensor.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(stored[name]).all():
            raise MusiccmError(f"{path}: {name} is NaN or beyond the range of float16 for a window among {ids[0]} to "
                               f"{ids[-1]}; check the bundle's vae and text_encoder")
    write_atomically(path, lambda temporary: save_file(stored, temporary, metadata={"ids": json.dumps(ids)}))


class LatentCache:
    """Reads a cache, from memory or row by row from the mapped files.

    Args:
        folder: The cache.
        expected: What it must have been made from (`cache_key`); None takes it as it is.
        in_memory: Read everything at once; by default where it is at most 2 GiB.

    Attributes:
        windows: The windows, in order.

    Raises:
        MusiccmError: The cache is missing, unfinished, damaged, or made from something else.
    """

    def __init__(
        self, folder: str | Path, expected: dict[str, Any] | None = None, in_memory: bool | None = None
    ) -> None:
        self.folder = Path(folder)
        index = _read_index(self.folder)
        if index is None:
            raise MusiccmError(f"{self.folder}: no latent cache here; run `musiccm prepare latents --config ...` first")
        if reasons := _differences(index["key"], expected or {}):
            raise MusiccmError(f"{self.folder}: stale latent cache: {'; '.join(reasons)}. Encode again with "
                               "`musiccm prepare latents --config ... --overwrite`")
        self.key: dict[str, Any] = index["key"]
        self.windows = [Window(**window) for window in index["windows"]]
        self._shard_size: int = index["shard_size"]
        shards = -(-len(self.windows) // self._shard_size)
        paths = [_shard_path(self.folder, number) for number in range(shards)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise MusiccmError(f"{self.folder}: {len(missing)} of {shards} shards are missing, first {missing[0]}; "
                               "run `musiccm prepare latents` again, it goes on where it stopped")
        self._paths = paths
        self._handles: dict[int, Any] = {}
        # Where the text rows of each window begin within its shard.
        self._text_start: list[int] = []
        for row in range(len(self.windows)):
            at_start = row % self._shard_size == 0
            self._text_start.append(0 if at_start else self._text_start[-1] + len(self.windows[row - 1].captions))
        if in_memory is None:
            in_memory = sum(path.stat().st_size for path in paths) <= _IN_MEMORY_BYTES
        self._memory = [self._load(number) for number in range(shards)] if in_memory else None

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def _open(self, number: int) -> Any:
        if number not in self._handles:
            try:
                self._handles[number] = safe_open(self._paths[number], framework="pt")
            except (OSError, SafetensorError) as error:
                raise MusiccmError(f"{self._paths[number]}: damaged ({error}); remove it and run "
                                   "`musiccm prepare latents` again") from error
        return self._handles[number]

    def _load(self, number: int) -> dict[str, Tensor]:
        shard = self._open(number)
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}
        del self._handles[number]
        return tensors

    def _rows(self, number: int, name: str, first: int, count: int) -> Tensor:
        if self._memory is not None:
            return self._memory[number][name][first : first + count]
        return self._open(number).get_slice(name)[first : first + count]

    def moments(self, row: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a window's raw latents, float32, each [C, T, F]."""
        number, place = divmod(row, self._shard_size)
        return self._rows(number, "mean", place, 1)[0].float(), self._rows(number, "std", place, 1)[0].float()

    def audio(self, row: int) -> Tensor:
        """CLAP embedding of a window's audio, [D]."""
        number, place = divmod(row, self._shard_size)
        return self._rows(number, "clap_audio", place, 1)[0]

    def text(self, row: int, caption: int = 0) -> Tensor:
        """CLAP embedding of one of a window's captions, [D]."""
        return self._rows(row // self._shard_size, "clap_text", self._text_start[row] + caption, 1)[0]
