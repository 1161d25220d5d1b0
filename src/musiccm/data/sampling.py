"""Which items an epoch visits, in what order, and how a killed run finds its place again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from musiccm.audio.windows import keyed_generator
from musiccm.errors import MusiccmError


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ShuffledSampler(DistributedSampler):
    """Visits every item once an epoch, in an order keyed by (seed, epoch), and yields `(epoch, item)`.

    The epoch travels with the item, so that a loader worker which outlives the epoch still draws the right window. The
    last, incomplete batch is left out. With several processes each takes its part of every global batch, so that global
    batches are the same for any number of processes. (Derives from DistributedSampler because Lightning replaces any
    other sampler when it runs distributed.)

    Args:
        size: Number of items.
        batch_size: Items in a batch of one process.
        seed: Seed of the orders.

    Raises:
        MusiccmError: There are fewer items than one global batch.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.num_replicas = _rank_and_world()
        self.epoch = 0
        self.start_batch = 0
        self.batches = size // (batch_size * self.num_replicas)
        if self.batches == 0:
            raise MusiccmError(
                f"{size} training items are fewer than one batch of {batch_size} on {self.num_replicas} process(es): "
                "lower data.batch_size or add tracks"
            )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order_N2, batch = self.order(self.epoch), self.batch_size
        for number in range(self.start_batch, self.batches):
            first = (number * self.num_replicas + self.rank) * batch
            yield from ((epoch, item) for epoch, item in order_N2[first : first + batch].tolist())

    def order(self, epoch: int) -> Tensor:
        """What an epoch visits, in all processes together: `(epoch, item)` in rows, [N, 2]."""
        order_N = torch.randperm(self.size, generator=keyed_generator(self.seed, "order", epoch))
        return torch.stack([torch.full_like(order_N, epoch), order_N], 1)

    def __len__(self) -> int:
        # Of a whole epoch, also while resuming within one: Lightning adds the batches done before to those fetched.
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; the place within the current one is kept if `epoch` is that one."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0


class MixedSampler(ShuffledSampler):
    """Visits items of several groups in fixed shares, and yields `(pass, item)`.

    An epoch has as many items as there are in all. Each group fills its share by going through its items in a new order
    again and again, and goes on in the next epoch where it stopped: none is visited twice before all its group were.
    `pass` counts these rounds, so that an item which an epoch visits twice is another window each time. What an epoch
    visits depends on (seed, epoch) alone.

    Args:
        sizes: Items in each group; items are numbered through, group after group.
        weights: Share of each group, relative to the others'.
        batch_size: Items in a batch of one process.
        seed: Seed of the orders.

    Raises:
        MusiccmError: A share is less than one item, or there are fewer items than one global batch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int = 0) -> None:
        super().__init__(sum(sizes), batch_size, seed)
        self.sizes = list(sizes)
        total = sum(weights)
        edges = [round(self.size * sum(weights[:n]) / total) for n in range(len(weights) + 1)]
        self.counts = [end - begin for begin, end in pairwise(edges)]
        if 0 in self.counts or 0 in self.sizes:
            raise MusiccmError(f"data.corpora: {self.sizes} items with the weights {list(weights)} leave a corpus "
                               "without a single item in an epoch; change the weights")

    def order(self, epoch: int) -> Tensor:
        """What an epoch visits, in all processes together: `(pass, item)` in rows, [N, 2]."""
        parts = []
        for group, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            places = torch.arange(epoch * count, (epoch + 1) * count)
            rounds = range(int(places[0]) // size, int(places[-1]) // size + 1)
            orders = torch.cat([
                torch.randperm(size, generator=keyed_generator(self.seed, "order", group, number)) for number in rounds
            ])
            items = orders[places - rounds[0] * size] + sum(self.sizes[:group])
            parts.append(torch.stack([places // size, items], 1))
        mixed_N2 = torch.cat(parts)
        return mixed_N2[torch.randperm(len(mixed_N2), generator=keyed_generator(self.seed, "mix", epoch))]


class OrderedSampler(DistributedSampler):
    """Items in order, divided among processes without padding, so that no item counts twice; yields bare items.

    Args:
        size: Number of items.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rank, self.num_replicas = _rank_and_world()

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch."""


class KeyedLoader(DataLoader):
    """A DataLoader that knows which batch comes next, and saves that in Lightning's checkpoints.

    With a `ShuffledSampler`, `state_dict()` is `{"epoch", "batch"}`: the number of batches of that epoch which were
    handed out. Loading it makes the next iteration continue there, whatever the number of workers. Iterating to the end
    moves on to the next epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        """Hand out batches; a batch that is an exception is raised here, in the main process."""
        sampler = self.sampler
        shuffled = sampler if isinstance(sampler, ShuffledSampler) else None
        self._handed_out = shuffled.start_batch if shuffled else 0
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            self._handed_out += 1
            yield batch
        if shuffled:
            shuffled.set_epoch(shuffled.epoch + 1)
            self._handed_out = 0

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch."""
        sampler = self.sampler
        if not isinstance(sampler, ShuffledSampler):
            return {}
        done = getattr(self, "_handed_out", sampler.start_batch)
        # Lightning never asks for the batch after the last, so that the epoch's end has to be told from the count.
        if done >= sampler.batches:
            return {"epoch": sampler.epoch + 1, "batch": 0}
        return {"epoch": sampler.epoch, "batch": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the place that `state_dict` told."""
        if isinstance(self.sampler, ShuffledSampler):
            self.sampler.epoch, self.sampler.start_batch = state["epoch"], state["batch"]
            self._handed_out = state["batch"]
