"""Items of a latent cache, drawn as training and evaluation need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.data.latents import LatentCache
from musiccm.data.waveforms import Index, pick


class LatentWindows(Dataset):
    """Windows of a cache: latents drawn from their moments and a random caption in training; the mean and the first
    caption in evaluation. An item is a function of (seed, epoch, window id).

    Args:
        cache: The cache.
        rows: Which windows.
        seed: Seed of latents and captions.
    """

    def __init__(self, cache: LatentCache, rows: Sequence[int], seed: int = 0) -> None:
        self.cache, self.rows, self.seed = cache, list(rows), seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Draw one item; see `WaveformWindows` for `index`."""
        epoch, item = index if isinstance(index, tuple) else (None, index)
        row = self.rows[item]
        window = self.cache.windows[row]
        latents_CTF, std_CTF = self.cache.moments(row)
        caption = 0
        if epoch is not None:
            noise_CTF = torch.randn(std_CTF.shape, generator=keyed_generator(self.seed, epoch, window.id, "moments"))
            latents_CTF = latents_CTF + std_CTF * noise_CTF
            caption = pick(len(window.captions), self.seed, epoch, window.id, "caption")
        return {
            "latents_CTF": latents_CTF,
            "text_D": self.cache.text(row, caption),
            "audio_D": self.cache.audio(row),
            "id": window.id,
            "caption": window.captions[caption],
        }


def collate_latents(items: Sequence[dict[str, Any]]) -> LatentBatch:
    """Stack items of `LatentWindows` into a batch."""
    return LatentBatch(
        latents_BCTF=torch.stack([item["latents_CTF"] for item in items]),
        text_BD=torch.stack([item["text_D"] for item in items]),
        audio_BD=torch.stack([item["audio_D"] for item in items]),
        ids=[item["id"] for item in items],
        captions=[item["caption"] for item in items],
    )
