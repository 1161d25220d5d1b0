"""Reading a latent cache: moments of the VAE and CLAP embeddings of a corpus, mapped from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from musiccm.data.latent_cache.files import (
    CAPTIONS_PER_WINDOW,
    COLUMNS,
    differences,
    file_counts,
    file_path,
    read_index,
)
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.errors import MusiccmError
from musiccm.locks import LOCK, holder


class LatentCache:
    """A cache that `musiccm prepare latents` wrote; nothing is read before it is asked for.

    Args:
        folder: The cache.
        expected: What it must have been made from (`cache_key`); None takes it as it is.

    Attributes:
        index: Which windows and words it holds.
        key: What it was made from.

    Raises:
        MusiccmError: The cache is missing, unfinished, damaged, made from something else, or being written.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if who := holder(self.folder.parent / LOCK):
            raise MusiccmError(f"{self.folder}: the latent cache is being written by {who}; wait until that has ended")
        found = read_index(self.folder)
        if found is None:
            raise MusiccmError(f"{self.folder}: no latent cache here; run `musiccm prepare latents --config ...` first")
        if reasons := differences(found["key"], expected or {}):
            raise MusiccmError(f"{self.folder}: stale latent cache: {'; '.join(reasons)}. Encode again with "
                               "`musiccm prepare latents --config ... --overwrite`")
        self.key: dict[str, Any] = found["key"]
        self.index = WindowIndex.load(self.folder / COLUMNS)
        self._shard_size: int = found["shard_size"]
        paths = [
            file_path(self.folder, kind, number)
            for kind, count in file_counts(self.index, self._shard_size).items() for number in range(count)
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise MusiccmError(f"{self.folder}: {len(missing)} of {len(paths)} files are missing, first {missing[0]}; "
                               "run `musiccm prepare latents` again, it goes on where it stopped")
        self._files: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, kind: str, number: int) -> dict[str, np.ndarray]:
        """The tensors of a file, views of its mapping."""
        if (kind, number) not in self._files:
            path = file_path(self.folder, kind, number)
            try:
                with safe_open(path, framework="pt") as file:
                    self._files[kind, number] = {name: file.get_tensor(name).numpy() for name in file.keys()}
            except (OSError, SafetensorError) as error:
                raise MusiccmError(f"{path}: damaged ({error}); remove it and run `musiccm prepare latents` "
                                   "again") from error
        return self._files[kind, number]

    def moments(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the raw latents of windows, float32, each [n, C, T, F]."""
        mean, std = (self._gather("shard", name, rows, self._shard_size) for name in ("mean", "std"))
        return mean.float(), std.float()

    def audio(self, rows: np.ndarray) -> Tensor:
        """CLAP embeddings of the windows' own audio, [n, D]."""
        return self._gather("shard", "clap_audio", rows, self._shard_size)

    def text(self, captions: np.ndarray) -> Tensor:
        """CLAP embeddings of captions by their numbers in the index, [n, D]."""
        return self._gather("text", "clap_text", captions, self._shard_size * CAPTIONS_PER_WINDOW)

    def _gather(self, kind: str, name: str, numbers: np.ndarray, file_size: int) -> Tensor:
        # Row by row, as a shuffled batch seldom has two from one file; by NumPy, which takes a row in half the time.
        files, places = (part.tolist() for part in np.divmod(numbers, file_size))
        first = self._file(kind, files[0])[name]
        out = np.empty((len(files), *first.shape[1:]), first.dtype)
        for n, (file, place) in enumerate(zip(files, places, strict=True)):
            out[n] = self._file(kind, file)[name][place]
        return torch.from_numpy(out)
