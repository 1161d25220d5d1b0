"""Batches of a latent cache, drawn as training and evaluation need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.audio.windows import keyed_seed
from musiccm.data.batch import AnyBatch, LatentBatch, TokenBatch
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.waveforms import Index, pick


@dataclass(frozen=True)
class _Drawn:
    """What a batch is of: rows of a cache, their ids and epochs, and numbers of their captions."""

    rows_B: np.ndarray
    ids: list[str]
    epochs: tuple[int | None, ...]
    numbers_B: np.ndarray
    captions: list[str]


class CachedWindows(Dataset):
    """Windows of a cache, with a random caption in training and the first one in evaluation.

    An item is a function of (seed, epoch, window id), whatever batch it comes in and whatever the cache holds.

    Args:
        cache: The cache.
        rows: Which windows.
        seed: Seed of all draws.
    """

    def __init__(self, cache: LatentCache, rows: Sequence[int] | np.ndarray, seed: int = 0) -> None:
        self.cache, self.rows_N, self.seed = cache, np.asarray(rows, np.int64), seed

    def __len__(self) -> int:
        return len(self.rows_N)

    def draw(self, indices: Sequence[Index]) -> _Drawn:
        """Choose rows and captions.

        Args:
            indices: For each item `(epoch, item)` in training, `item` alone in evaluation.
        """
        index = self.cache.index
        epochs, items = zip(*(i if isinstance(i, tuple) else (None, i) for i in indices), strict=True)
        rows_B = self.rows_N[list(items)]
        clips_B = index.clips_of(rows_B)
        ids = [index.id(row, clip) for row, clip in zip(rows_B.tolist(), clips_B.tolist(), strict=True)]
        captions = index.caption_ends_P1[clips_B].tolist()
        counts = (index.caption_ends_P1[clips_B + 1] - index.caption_ends_P1[clips_B]).tolist()
        for n, epoch in enumerate(epochs):
            if epoch is not None:
                captions[n] += pick(counts[n], self.seed, epoch, ids[n], "caption")
        numbers_B = index.caption_numbers(np.asarray(captions))
        return _Drawn(rows_B, ids, epochs, numbers_B, [index.captions[number] for number in numbers_B.tolist()])


class LatentWindows(CachedWindows):
    """Windows of a cache: latents drawn from their moments in training; the mean in evaluation.

    Args:
        cache: The cache.
        rows: Which windows.
        seed: Seed of latents and captions.
        tokens: The cache of the same windows' semantic tokens, which are then in the batch.
    """

    def __init__(
        self, cache: LatentCache, rows: Sequence[int] | np.ndarray, seed: int = 0, tokens: LatentCache | None = None
    ) -> None:
        super().__init__(cache, rows, seed)
        self.tokens = tokens

    def __getitem__(self, index: Index) -> LatentBatch:
        """A batch of one item."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[Index]) -> LatentBatch:
        """Draw a batch.

        Args:
            indices: For each item `(epoch, item)` in training, `item` alone in evaluation.

        Returns:
            The batch, in the order of `indices`.
        """
        drawn = self.draw(indices)
        mean_BCTF, std_BCTF = self.cache.moments(drawn.rows_B)
        noise_BCTF, generator = torch.zeros_like(mean_BCTF), torch.Generator()
        for n, epoch in enumerate(drawn.epochs):
            if epoch is not None:
                key = (self.seed, epoch, drawn.ids[n], "moments")
                noise_BCTF[n].normal_(generator=generator.manual_seed(keyed_seed(*key)))
        return LatentBatch(
            latents_BCTF=noise_BCTF.mul_(std_BCTF).add_(mean_BCTF),
            text_BD=self.cache.text(drawn.numbers_B),
            audio_BD=None if self.cache.has_tokens else self.cache.audio(drawn.rows_B),
            ids=drawn.ids,
            captions=drawn.captions,
            semantic_BL=None if self.tokens is None else self.tokens.semantic(drawn.rows_B),
        )


class TokenWindows(CachedWindows):
    """Semantic tokens of a cache's windows, with the embeddings of their sound and of a caption."""

    def __getitem__(self, index: Index) -> TokenBatch:
        """A batch of one item."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[Index]) -> TokenBatch:
        """Draw a batch, see `LatentWindows`."""
        drawn = self.draw(indices)
        text = self.cache.text(drawn.numbers_B)
        assert isinstance(text, Tensor)
        return TokenBatch(semantic_BL=self.cache.semantic(drawn.rows_B), text_BD=text,
                          audio_BD=self.cache.audio(drawn.rows_B), ids=drawn.ids, captions=drawn.captions)


def collate_latents(batch: AnyBatch) -> AnyBatch:
    """`CachedWindows` hand out whole batches."""
    return batch
