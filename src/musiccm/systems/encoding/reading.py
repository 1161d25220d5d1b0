"""Reading the windows of a corpus, in this process or in others beside the one that encodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.audio.windows import read_window
from musiccm.data.batch import Batch
from musiccm.data.latent_cache.files import Unit
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.mixtures import MixedClip
from musiccm.data.module import MusicDataModule
from musiccm.data.sampling import KeyedLoader
from musiccm.data.workers import AHEAD
from musiccm.errors import MusiccmError


@dataclass(frozen=True)
class WorkItem:
    """One batch of work: rows, or captions, `first` to `last` of a unit of a split."""

    split: str
    unit: Unit
    first: int
    last: int

    @property
    def ends_unit(self) -> bool:
        """Whether the unit is complete with this item."""
        return self.last == self.unit.last


@dataclass
class WorkBatch(Batch):
    """What an item holds: windows or captions, and the seconds that reading them took."""

    item: WorkItem
    waveform_BS: Tensor | None = None
    captions: list[str] = field(default_factory=list)
    read_s: float = 0.0


class WorkItems(Dataset):
    """Reads items.

    Args:
        data: The corpora and the windows' settings.
        indices: The windows and captions of each split.
        items: What is read.
    """

    def __init__(self, data: MusicDataModule, indices: Mapping[str, WindowIndex], items: Sequence[WorkItem]) -> None:
        self.data, self.indices, self.items = data, dict(indices), list(items)
        self.clips = {split: data.clips(split) for split in indices}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> WorkBatch | MusiccmError:
        """Read an item; an error takes its place, as one raised in a worker would arrive as a traceback in a string."""
        item, start = self.items[number], time.perf_counter()
        index, rows = self.indices[item.split], range(item.first, item.last)
        if item.unit.kind == "text":
            return WorkBatch(item, captions=[index.captions[n] for n in rows])
        try:
            waveform_BS = torch.stack([self.window(item.split, row) for row in rows])
        except MusiccmError as error:
            return error
        return WorkBatch(item, waveform_BS, read_s=time.perf_counter() - start)

    def window(self, split: str, row: int) -> Tensor:
        """One window, `[clip_samples]`.

        Raises:
            BadAudio: The file changed since it was scanned.
        """
        data, index = self.data, self.indices[split]
        clip = self.clips[split][index.clip_of(row)]
        if isinstance(clip, MixedClip):
            return clip.read(data.clip_samples, data.sample_rate_hz, data.conversion)
        start = int(index.starts_N[row])
        return read_window(clip.path, clip.audio, data.clip_samples, data.sample_rate_hz, start, data.conversion)


class ItemLoader:
    """Hands out items in order; no DataLoader, as Lightning would put a sampler of its own into one that predicts.

    Args:
        items: What is read.
        workers: Processes that read; 0 for this one.
        pinned: Whether windows come in page-locked memory, from which a GPU fetches them by itself.

    Attributes:
        waited_s: Seconds for which whoever iterates waited for an item.
    """

    def __init__(self, items: WorkItems, workers: int, pinned: bool = False) -> None:
        workers = min(workers, len(items))
        self.loader = KeyedLoader(items, batch_size=None, num_workers=workers, pin_memory=pinned,
                                  prefetch_factor=AHEAD if workers else None, persistent_workers=workers > 0)
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[WorkBatch]:
        start = time.perf_counter()
        for batch in self.loader:
            self.waited_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def close(self) -> None:
        """End the processes. torch raises for one that was killed whenever another ends, wherever this one then is."""
        iterator: Any = self.loader._iterator
        self.loader._iterator = None
        if iterator is not None:
            with suppress(RuntimeError):  # the last such one
                iterator._shutdown_workers()

    def __len__(self) -> int:
        return len(self.loader)


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turn what torch raises, wherever the main thread then is, when a process that reads was killed.

    Raises:
        MusiccmError: One was.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        said = str(error).partition("\n")[0].strip()
        if not isinstance(error, RuntimeError):  # what it had sent was being fetched from it
            said = f"DataLoader worker: {said or type(error).__name__}"
        elif "DataLoader worker" not in str(error):
            raise
        raise MusiccmError(f"a process that reads audio was ended ({said}); if memory ran out, give --workers a "
                           "smaller number. The same command goes on where this one stopped") from error
