"""What every metric here shares: rows that belong to named clips, counted once whatever the sharding.

A distributed sampler pads its last batch with clips that another rank also has. Counting those twice shifts every
figure, so each metric keeps the clip id beside each row, and drops repeats after the gather.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from musiccm.errors import MusiccmError
from musiccm.metrics.clip_ids import decode_ids, encode_ids

log = logging.getLogger(__name__)


class TooFewClips(MusiccmError):
    """A metric cannot be taken from so few clips; others of the same clips can."""


def require_rows(name: str, rows: Tensor, ids: Sequence[str]) -> None:
    """Refuse rows that do not match their ids, or that are not finite numbers.

    Args:
        name: What the rows are, for the message.
        rows: One row a clip, `[B, ...]`.
        ids: Clip ids, `B` of them.

    Raises:
        MusiccmError: Row and id counts differ, or a row holds NaN or infinity (the clip is named).
    """
    if rows.shape[0] != len(ids):
        raise MusiccmError(f"{name}: expected one row a clip id, found {rows.shape[0]} rows and {len(ids)} ids")
    bad = (~torch.isfinite(rows.detach())).reshape(len(ids), -1).any(dim=1) if len(ids) else torch.empty(0)
    if bad.any():
        named = list(dict.fromkeys(clip_id for clip_id, is_bad in zip(ids, bad.tolist(), strict=True) if is_bad))
        raise MusiccmError(
            f"{name}: expected finite numbers, found NaN or infinity for {len(named)} clips, first {named[:3]}; "
            "look at what was generated or read for these clips"
        )


def rows_each(name: str, rows: Tensor, ids: Sequence[str], counts: Sequence[int] | None) -> list[int]:
    """Refuse rows of clips that do not add up, or that are not finite numbers.

    Args:
        name: What the rows are, for the message.
        rows: Rows of all clips, clip after clip, `[R, ...]`.
        ids: Clip ids, `B` of them.
        counts: Rows of each clip; None is one each.

    Returns:
        Rows of each clip, `B` numbers.

    Raises:
        MusiccmError: The counts do not fit, a clip has no row, or a row holds NaN or infinity (the clip is named).
    """
    if counts is None:
        require_rows(name, rows, ids)
        return [1] * len(ids)
    if len(counts) != len(ids) or sum(counts) != rows.shape[0]:
        raise MusiccmError(
            f"{name}: expected counts for {len(ids)} clips that add up to {rows.shape[0]} rows, found {len(counts)} "
            f"counts that add up to {sum(counts)}"
        )
    empty = [clip_id for clip_id, count in zip(ids, counts, strict=True) if count < 1]
    if empty:
        raise MusiccmError(f"{name}: expected at least one row a clip, found none for {len(empty)}, first {empty[:3]}")
    require_rows(name, rows, [clip_id for clip_id, count in zip(ids, counts, strict=True) for _ in range(count)])
    return list(counts)


class ClipMetric(Metric):
    """A metric whose states are rows keyed by clip id, exact under any sharding, batching or order.

    Ranks may hold different numbers of rows, or none. Repeats of an id are dropped: the first one seen counts.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, reset_real_features: bool = True, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            reset_real_features: Whether `reset` forgets the reference clips too; false lets one reference serve many
                models. The reference is what states with names in `real_` hold.
            **kwargs: Passed to `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.reset_real_features = reset_real_features
        self._ndim: dict[str, tuple[int, torch.dtype]] = {}
        self._seen: dict[str, set[str]] = {}
        self._cautioned: set[str] = set()

    def add_rows(self, name: str, ndim: int, dtype: torch.dtype) -> None:
        """Declare a list of tensors that are joined along their first axis.

        Args:
            name: Attribute name of the state.
            ndim: Number of axes of each tensor.
            dtype: Its type.
        """
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._ndim[name] = (ndim, dtype)

    def add_ids(self, name: str) -> None:
        """Declare a list of packed clip ids.

        Args:
            name: Attribute name of the state.
        """
        self.add_rows(name, 1, torch.uint8)
        self._seen[name] = set()

    def first_seen(self, name: str, ids: Sequence[str]) -> list[int]:
        """Mark ids as seen on this rank.

        Args:
            name: What they are counted under.
            ids: Clip ids of one batch.

        Returns:
            Positions, in the batch, of those not seen before.
        """
        seen, keep = self._seen[name], []
        for position, clip_id in enumerate(ids):
            if clip_id not in seen:
                seen.add(clip_id)
                keep.append(position)
        return keep

    def take_new(self, name: str, ids: Sequence[str]) -> list[int]:
        """Record the ids not seen before on this rank.

        Args:
            name: The id state.
            ids: Clip ids of one batch.

        Returns:
            Positions, in the batch, of the rows to keep.
        """
        keep = self.first_seen(name, ids)
        getattr(self, name).append(encode_ids([ids[position] for position in keep]).to(self.device))
        return keep

    def joined(self, name: str) -> Tensor:
        """All rows of a state as one tensor.

        Args:
            name: The state.

        Returns:
            The rows, `[n, ...]`; without any, a tensor with no element.
        """
        rows = [chunk for chunk in getattr(self, name) if chunk.shape[0]]
        ndim, dtype = self._ndim[name]
        return torch.cat(rows) if rows else torch.empty((0,) * ndim, dtype=dtype, device=self.device)

    def unique(self, name: str) -> tuple[list[str], Tensor]:
        """The ids of a state in sorted order, each once, and where their rows are.

        Args:
            name: The id state.

        Returns:
            Sorted ids and the position of the first row of each, `[n]`.
        """
        first: dict[str, int] = {}
        for position, clip_id in enumerate(decode_ids(self.joined(name))):
            first.setdefault(clip_id, position)
        ids = sorted(first)
        return ids, torch.tensor([first[clip_id] for clip_id in ids], dtype=torch.long, device=self.device)

    def caution(self, what: str, *args: Any) -> None:
        """Log a warning about the figure, once for each metric and text, on rank zero.

        Args:
            what: The text, as `logging` takes it.
            *args: What goes into it.
        """
        message = what % args
        if message not in self._cautioned and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
            log.warning(message)
        self._cautioned.add(message)

    def reset(self) -> None:
        """Forget all rows; those of the reference stay where `reset_real_features` is false."""
        names = [] if self.reset_real_features else [name for name in self._reductions if name.startswith("real_")]
        kept = {name: list(getattr(self, name)) for name in names}  # Metric.reset clears the lists themselves
        super().reset()
        for name, rows in kept.items():
            setattr(self, name, rows)
        for name, seen in self._seen.items():
            if self.reset_real_features or not name.startswith("real_"):
                seen.clear()

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """As `Metric.sync_context`, but a `compute` that raises leaves the metric as it was.

        Args:
            *args: As there.
            **kwargs: As there.

        Yields:
            Nothing.
        """
        try:
            with super().sync_context(*args, **kwargs):
                yield
        except BaseException:
            if self._is_synced:
                self.unsync()
            raise

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        # torchmetrics gives a rank without rows a 1-D float tensor, which cannot be gathered with its neighbours' rows.
        if dist_sync_fn is None:
            raise MusiccmError("metric sync: expected a gather function, found none")
        for name in self._reductions:
            local = self.joined(name)
            gathered = dist_sync_fn(local, group=process_group or self.process_group)
            setattr(self, name, [rows for rows in gathered if rows.shape[0]])


class ClipCount(ClipMetric):
    """How many clips there are: the n of a row, whatever its metrics are."""

    def __init__(self, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(**kwargs)
        self.add_ids("ids")

    def update(self, ids: Sequence[str]) -> None:
        """Add clips.

        Args:
            ids: Clip ids.
        """
        self.take_new("ids", ids)

    def compute(self) -> int:
        """The number of different clips."""
        return len(self.unique("ids")[0])
