"""Reading a latent cache: moments of the VAE and conditions of a corpus, mapped from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from musiccm.data.latent_cache.files import (
    COLUMNS,
    SEMANTIC_FORMAT,
    TOKEN_FORMAT,
    differences,
    file_counts,
    file_path,
    file_sizes,
    read_index,
    wording,
)
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.diffusion import AnyCondition, Condition
from musiccm.errors import MusiccmError
from musiccm.locks import LOCK, holder


class LatentCache:
    """A cache that `musiccm prepare latents` or `tokens` wrote; nothing is read before it is asked for.

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
        self.folder, named = Path(folder), wording((expected or {}).get("format"))
        if who := holder(self.folder.parent / LOCK):
            raise MusiccmError(f"{self.folder}: the {named.holds.removesuffix('s')} cache is being written by {who}; "
                               "wait until that has ended")
        found = read_index(self.folder)
        if found is None:
            raise MusiccmError(f"{self.folder}: no {named.holds.removesuffix('s')} cache here; run `{named.command} "
                               "--config ...` first")
        if reasons := differences(found["key"], expected or {}):
            raise MusiccmError(f"{self.folder}: stale {named.holds.removesuffix('s')} cache: {'; '.join(reasons)}. "
                               f"Encode again with `{named.command} --config ... --overwrite`")
        self.key: dict[str, Any] = found["key"]
        self.index = WindowIndex.load(self.folder / COLUMNS)
        self._sizes = file_sizes(found["shard_size"], self.key["format"])
        paths = [
            file_path(self.folder, kind, number)
            for kind, count in file_counts(self.index, found["shard_size"], self.key["format"]).items()
            for number in range(count)
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise MusiccmError(f"{self.folder}: {len(missing)} of {len(paths)} files are missing, first {missing[0]}; "
                               f"run `{named.command}` again, it goes on where it stopped")
        self._files: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    @property
    def has_tokens(self) -> bool:
        """Whether its captions are tokens, and not CLAP's vectors; then it holds no embeddings of audio."""
        return self.key["format"] == TOKEN_FORMAT

    def _file(self, kind: str, number: int) -> dict[str, np.ndarray]:
        """The tensors of a file, views of its mapping."""
        if (kind, number) not in self._files:
            path = file_path(self.folder, kind, number)
            try:
                with safe_open(path, framework="pt") as file:
                    found = {name: file.get_tensor(name).numpy() for name in file.keys()}
                if "lengths" in found:
                    found["ends"] = np.concatenate([[0], np.cumsum(found["lengths"])])
                self._files[kind, number] = found
            except (OSError, SafetensorError) as error:
                raise MusiccmError(f"{path}: damaged ({error}); remove it and run "
                                   f"`{wording(self.key['format']).command}` again") from error
        return self._files[kind, number]

    def moments(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the raw latents of windows, float32, each [n, C, T, F]."""
        mean, std = (self._gather("shard", name, rows) for name in ("mean", "std"))
        return mean.float(), std.float()

    def semantic(self, rows: np.ndarray) -> Tensor:
        """Semantic tokens of windows, int64, [n, L].

        Raises:
            MusiccmError: The cache holds latents.
        """
        if self.key["format"] != SEMANTIC_FORMAT:
            raise MusiccmError(f"{self.folder}: holds latents and no semantic tokens; `musiccm prepare tokens` makes "
                               "them")
        return self._gather("shard", "semantic", rows).long()

    def audio(self, rows: np.ndarray) -> Tensor:
        """CLAP embeddings of the windows' own audio, [n, D].

        Raises:
            MusiccmError: The cache has none.
        """
        if self.has_tokens:
            raise MusiccmError(f"{self.folder}: holds tokens of captions and no embeddings of audio, as its bundle's "
                               "text encoder embeds none. Training clips are compared by a CLAP's index of them: "
                               "`musiccm prepare index --bundle` with a bundle that has one, then `musiccm plagiarism`")
        return self._gather("shard", "clap_audio", rows)

    def text(self, captions: np.ndarray) -> AnyCondition:
        """Conditions of captions by their numbers in the index: CLAP embeddings [n, D], or tokens."""
        return self._tokens(captions) if self.has_tokens else self._gather("text", "clap_text", captions)

    def _tokens(self, captions: np.ndarray) -> Condition:
        """Tokens of captions, padded to the longest of these; float32."""
        found = []
        for number, place in zip(*(part.tolist() for part in np.divmod(captions, self._sizes["text"])), strict=True):
            file = self._file("text", number)
            found.append(file["tokens"][file["ends"][place] : file["ends"][place + 1]])
        lengths = np.asarray([len(tokens) for tokens in found])
        out = np.zeros((len(found), lengths.max(), found[0].shape[1]), np.float32)
        for row, tokens in zip(out, found, strict=True):
            row[: len(tokens)] = tokens
        mask = np.arange(lengths.max()) < lengths[:, None]
        return Condition(torch.from_numpy(out), torch.from_numpy(mask))

    def _gather(self, kind: str, name: str, numbers: np.ndarray) -> Tensor:
        # Row by row, as a shuffled batch seldom has two from one file; by NumPy, which takes a row in half the time.
        files, places = (part.tolist() for part in np.divmod(numbers, self._sizes[kind]))
        first = self._file(kind, files[0])[name]
        out = np.empty((len(files), *first.shape[1:]), first.dtype)
        for n, (file, place) in enumerate(zip(files, places, strict=True)):
            out[n] = self._file(kind, file)[name][place]
        return torch.from_numpy(out)
