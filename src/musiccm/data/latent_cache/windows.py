"""Batches of a latent cache, drawn as training and evaluation need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from musiccm.audio.windows import keyed_seed
from musiccm.data.batch import LatentBatch
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.waveforms import Index, pick


class LatentWindows(Dataset):
    """Windows of a cache: latents drawn from their moments and a random caption in training; the mean and the first
    caption in evaluation. An item is a function of (seed, epoch, window id), whatever batch it comes in.

    Args:
        cache: The cache.
        rows: Which windows.
        seed: Seed of latents and captions.
    """

    def __init__(self, cache: LatentCache, rows: Sequence[int] | np.ndarray, seed: int = 0) -> None:
        self.cache, self.rows_N, self.seed = cache, np.asarray(rows, np.int64), seed

    def __len__(self) -> int:
        return len(self.rows_N)

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
        index = self.cache.index
        epochs, items = zip(*(i if isinstance(i, tuple) else (None, i) for i in indices), strict=True)
        rows_B = self.rows_N[list(items)]
        clips_B = index.clips_of(rows_B)
        ids = [index.id(row, clip) for row, clip in zip(rows_B.tolist(), clips_B.tolist(), strict=True)]
        captions = index.caption_ends_P1[clips_B].tolist()
        counts = (index.caption_ends_P1[clips_B + 1] - index.caption_ends_P1[clips_B]).tolist()
        mean_BCTF, std_BCTF = self.cache.moments(rows_B)
        noise_BCTF, generator = torch.zeros_like(mean_BCTF), torch.Generator()
        for n, epoch in enumerate(epochs):
            if epoch is not None:
                key = (self.seed, epoch, ids[n])
                noise_BCTF[n].normal_(generator=generator.manual_seed(keyed_seed(*key, "moments")))
                captions[n] += pick(counts[n], *key, "caption")
        return LatentBatch(
            latents_BCTF=noise_BCTF.mul_(std_BCTF).add_(mean_BCTF),
            text_BD=self.cache.text(np.asarray(captions)),
            audio_BD=self.cache.audio(rows_B),
            ids=ids,
            captions=[index.captions[number] for number in captions],
        )


def collate_latents(batch: LatentBatch) -> LatentBatch:
    """`LatentWindows` hands out whole batches."""
    return batch
