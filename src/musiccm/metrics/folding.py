"""Memory that does not grow with the rows: the newest are kept as rows, all older ones as a summary."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clip_ids import decode_ids, encode_ids
from musiccm.metrics.clips import ClipMetric, rows_each

Summary = tuple[Tensor, ...]


class Collected(NamedTuple):
    """One set of clips, each counted once.

    Args:
        n: Clips.
        ids: Those whose rows are still at hand.
        counts: Rows of each of them.
        rows: Their rows, clip after clip, `[R, D]`.
        summaries: What the others were folded into, one a rank.
    """

    n: int
    ids: list[str]
    counts: list[int]
    rows: Tensor
    summaries: list[Summary]


class FoldingMetric(ClipMetric):
    """A metric of whose clips all but the newest are folded into a summary of constant size.

    A distributed sampler repeats clips at its end, when they are still rows and can be dropped; of a folded clip only
    the id is kept. A clip that two ranks folded cannot be taken out again and is an error.
    """

    def __init__(self, buffer_rows: int | None, dtype: torch.dtype, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            buffer_rows: Rows kept as rows, for each set and rank, before the older half is folded; None folds nothing.
            dtype: Type of the rows that are kept.
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(**kwargs)
        self.buffer_rows, self.dtype_of_rows = buffer_rows, dtype
        self._parts: dict[str, list[str]] = {}

    def add_side(self, side: str, **parts: int) -> None:
        """Declare a set of clips.

        Args:
            side: Its name; states are named after it.
            **parts: Names of the tensors that its summary consists of, with their numbers of axes; all float64.
        """
        self.add_ids(f"{side}_ids")
        self.add_rows(f"{side}_counts", 1, torch.long)
        self.add_rows(f"{side}_rows", 2, self.dtype_of_rows)
        self.add_rows(f"{side}_folded_ids", 1, torch.uint8)
        self._parts[side] = [f"{side}_{part}" for part in parts]
        for part, ndim in parts.items():
            self.add_rows(f"{side}_{part}", ndim + 1, torch.float64)

    @abstractmethod
    def fold(self, summary: Summary | None, rows: Tensor, ids: Sequence[str], counts: Sequence[int]) -> Summary:
        """Add clips to a summary.

        Args:
            summary: What there is; None at first.
            rows: Rows of the clips, `[R, D]`.
            ids: Their ids.
            counts: Rows of each.

        Returns:
            The new summary, its tensors in the order of `add_side`.
        """

    def add_clips(
        self, side: str, name: str, rows: Tensor, ids: Sequence[str], counts: Sequence[int] | None = None
    ) -> None:
        """Add clips to a set, less those that it already has.

        Args:
            side: The set.
            name: What the rows are, for messages.
            rows: Rows of the clips, clip after clip, `[R, D]`.
            ids: Clip ids.
            counts: Rows of each clip; None is one each.

        Raises:
            MusiccmError: Wrong number of axes, counts that do not add up, or rows that are not finite.
        """
        if rows.ndim != 2:
            raise MusiccmError(f"{name}: expected [R, D] rows, found {list(rows.shape)}")
        counts = rows_each(name, rows, ids, counts)
        keep = self.take_new(f"{side}_ids", ids)
        rows = rows.detach().to(self.device, self.dtype_of_rows)
        if len(keep) < len(ids):
            parts = rows.split(counts)
            rows = torch.cat([rows[:0], *[parts[i] for i in keep]])
        getattr(self, f"{side}_counts").append(torch.tensor([counts[i] for i in keep], device=self.device).long())
        getattr(self, f"{side}_rows").append(rows)
        self._fold_oldest(side)

    def collected(self, side: str) -> Collected:
        """What a set consists of, repeats dropped.

        Args:
            side: The set.

        Returns:
            Its rows and summaries.

        Raises:
            MusiccmError: A clip was folded on two ranks.
        """
        folded_ids = decode_ids(self.joined(f"{side}_folded_ids"))
        seen = set(folded_ids)
        if len(seen) != len(folded_ids):
            raise MusiccmError(
                f"{type(self).__name__}: a clip was folded on two ranks and cannot be taken out again; raise "
                f"buffer_rows (now {self.buffer_rows}) or give each clip to one rank"
            )
        ids, counts, keep = [], [], []
        for clip_id, count in zip(
            decode_ids(self.joined(f"{side}_ids")), self.joined(f"{side}_counts").tolist(), strict=True
        ):
            is_new = clip_id not in seen
            seen.add(clip_id)
            keep += [is_new] * count
            if is_new:
                ids.append(clip_id)
                counts.append(count)
        rows = self.joined(f"{side}_rows")
        if not all(keep):
            rows = rows[torch.tensor(keep, device=rows.device)]
        parts = [self.joined(part) for part in self._parts[side]]
        summaries = list(zip(*parts, strict=True)) if parts else []
        return Collected(len(seen), ids, counts, rows, summaries)

    def _fold_oldest(self, side: str) -> None:
        rows = getattr(self, f"{side}_rows")
        total = sum(len(chunk) for chunk in rows)
        if self.buffer_rows is None or total <= self.buffer_rows or len(rows) == 1:
            return
        ids, counts = getattr(self, f"{side}_ids"), getattr(self, f"{side}_counts")
        taken: tuple[list[Tensor], list[str], list[int]] = ([], [], [])
        # Half at once: folding costs the same for many rows as for few.
        while len(rows) > 1 and total > self.buffer_rows // 2:
            total -= len(rows[0])
            taken[0].append(rows.pop(0))
            taken[1].extend(decode_ids(ids.pop(0)))
            taken[2].extend(counts.pop(0).tolist())
        states = [getattr(self, part) for part in self._parts[side]]
        old = tuple(state[0][0] for state in states) if states[0] else None
        for state, part in zip(states, self.fold(old, torch.cat(taken[0]), taken[1], taken[2]), strict=True):
            state[:] = [part[None]]
        getattr(self, f"{side}_folded_ids").append(encode_ids(taken[1]).to(self.device))
