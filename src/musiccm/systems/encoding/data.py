"""What has to be encoded: the files of both latent caches of an experiment, and batches of windows and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch

from musiccm.data.latent_cache.files import CacheWriter, Unit
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.module import MusicDataModule
from musiccm.data.workers import default_workers
from musiccm.systems.encoding.reading import ItemLoader, WorkItem, WorkItems
from musiccm.terminal import say

SPLITS = ("train", "test")


class EncodingData(pl.LightningDataModule):
    """The work of `musiccm prepare latents` and `tokens`, divided among processes in whole files.

    Which windows a file holds follows from the corpus alone, and each file is one process' work from beginning to end:
    the cache is the same, byte for byte, for any number of processes, also when a killed run is resumed with another
    number of them. Process 0 reads the corpus first, so that its scan is there for the others.

    Args:
        data: The corpora and the windows' settings, of kind `waveform`.
        model: Fingerprint of the bundle that encodes; of its CLAP where it writes semantic tokens.
        batch_size: Windows at a time.
        shard_size: Windows in a file.
        overwrite: Replace a cache that was made from something else.
        tokens: Whether the bundle's text encoder gives tokens.
        splits: What is encoded, of `SPLITS`: training reads `train` alone.
        tokenizer: Fingerprint of the semantic tokenizer whose tokens are written; None where latents are.
        workers: Processes that read beside each that encodes, 0 for none: what they read is the same. By default as
            many as `default_workers` says.
    """

    def __init__(
        self, data: MusicDataModule, model: str, batch_size: int, shard_size: int = 256, overwrite: bool = False,
        tokens: bool = False, splits: Sequence[str] = SPLITS, tokenizer: str | None = None, workers: int | None = None,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self.data, self.model, self.tokens, self.splits = data, model, tokens, tuple(splits)
        self.batch_size, self.shard_size, self.overwrite = batch_size, shard_size, overwrite
        self.tokenizer, self.workers = tokenizer, workers
        self.loader: ItemLoader | None = None
        self.writers: dict[str, CacheWriter] = {}
        self.pending: list[tuple[str, Unit]] = []

    @property
    def folder(self) -> Path:
        """Where the caches of all splits lie."""
        return Path(str(self.data.cache_dir if self.tokenizer is None else self.data.tokens_dir))

    def prepare_data(self) -> None:
        """Read the corpora and begin the caches; process 0 alone, while the others wait.

        Raises:
            MusiccmError: A corpus cannot be used, or a cache holds something else.
        """
        self._open()
        for split, writer in self.writers.items():
            for name, report in self.data.reports.items():
                if name.split("/")[-1] in (("train", "validation") if split == "train" else (split,)):
                    say(report)
            writer.begin(self.overwrite)

    def setup(self, stage: str | None = None) -> None:
        """Find what is left to do, the same in every process.

        Args:
            stage: Unused.
        """
        self._open()
        assert self.trainer is not None
        units = [(split, unit) for split, writer in self.writers.items() for unit in writer.units()]
        # As one process sees it: another may be writing already when the last one looks.
        self.pending = self.trainer.strategy.broadcast(
            [(split, unit) for split, unit in units if not self.writers[split].is_written(unit)]
            if self.trainer.is_global_zero else []
        )
        if self.trainer.is_global_zero and len(self.pending) < len(units):
            say(f"{len(units) - len(self.pending)} of {len(units)} files are there already")

    def predict_dataloader(self) -> ItemLoader:
        """The items of this process' files, file after file."""
        assert self.trainer is not None
        own = self.pending[self.trainer.global_rank :: self.trainer.world_size]
        items = [
            WorkItem(split, unit, first, min(first + self.batch_size, unit.last))
            for split, unit in own for first in range(unit.first, unit.last, self.batch_size)
        ]
        reads = WorkItems(self.data, {split: writer.index for split, writer in self.writers.items()}, items)
        workers = self.workers
        if workers is None:
            batch_bytes = self.batch_size * self.data.clip_samples * torch.float32.itemsize
            workers = default_workers(self.trainer.num_devices, batch_bytes)
        self.loader = ItemLoader(reads, workers, self.trainer.strategy.root_device.type == "cuda")
        return self.loader

    def _open(self) -> None:
        if self.writers:
            return
        data = self.data
        data.setup("test")
        for split in self.splits:
            index = WindowIndex.plan(data.clips(split), data.clip_samples, data.sample_rate_hz, data.windows_per_track,
                                     distinct=self.tokens)
            key = (data.latent_key(split, self.model, self.tokens) if self.tokenizer is None
                   else data.token_key(split, self.model, self.tokenizer))
            self.writers[split] = CacheWriter(self.folder / split, key, index, self.shard_size)
