"""Two sets of rows that are all kept: for metrics that need every row, or many draws of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.folding import FoldingMetric, Summary


class RowSet(NamedTuple):
    """One set, in the order of its clip ids.

    Args:
        ids: Clip ids, sorted.
        clips: The rows of each clip, `[R_i, D]` each, float64.
    """

    ids: tuple[str, ...]
    clips: tuple[Tensor, ...]

    @property
    def rows(self) -> Tensor:
        """All rows, `[R, D]`."""
        return torch.cat(self.clips)

    def numbers(self, of: dict[str, int]) -> Tensor:
        """Which clip each row belongs to, `[R]`, by the numbers of `of`, to which new ids are added."""
        number = [of.setdefault(clip_id, len(of)) for clip_id in self.ids]
        counts = torch.tensor([len(rows) for rows in self.clips])
        return torch.tensor(number).repeat_interleave(counts).to(self.clips[0].device)

    def of(self, chosen: Iterable[str]) -> RowSet:
        """Some of the clips, in the order given."""
        place, chosen = {clip_id: i for i, clip_id in enumerate(self.ids)}, tuple(chosen)
        return RowSet(chosen, tuple(self.clips[place[clip_id]] for clip_id in chosen))


class PairedRowsMetric(FoldingMetric):
    """A metric of real and generated rows, all kept as float32: memory grows with their number."""

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        """Start without rows.

        Args:
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(None, torch.float32, **kwargs)
        for side in ("real", "fake"):
            self.add_side(side)

    def update(self, features: Tensor, ids: Sequence[str], real: bool, counts: Sequence[int] | None = None) -> None:
        """Add clips to one set.

        Args:
            features: Feature rows of all clips, clip after clip, `[R, D]`.
            ids: Clip ids, `B` of them.
            real: Whether they belong to the reference set.
            counts: Rows of each clip, `B` numbers that add up to R; None is one each.
        """
        self.add_clips("real" if real else "fake", f"{type(self).__name__} features", features, ids, counts)

    def fold(self, summary: Summary | None, rows: Tensor, ids: Sequence[str], counts: Sequence[int]) -> Summary:
        """Nothing is folded here.

        Args:
            summary: What there is.
            rows: Rows of the clips.
            ids: Their ids.
            counts: Rows of each.

        Returns:
            An empty summary.
        """
        return ()

    @staticmethod
    def counted(real: RowSet, fake: RowSet) -> dict[str, int]:
        """What every result of two sets says of their sizes.

        Args:
            real: The reference.
            fake: The generated set.

        Returns:
            `n` and `n_real` clips; `rows` and `rows_real` feature rows.
        """
        return {"n": len(fake.clips), "n_real": len(real.clips), "rows": sum(map(len, fake.clips)),
                "rows_real": sum(map(len, real.clips))}

    def row_sets(self) -> tuple[RowSet, RowSet]:
        """The real and the generated set, the same for every order, batching and number of ranks.

        Returns:
            Both sets.

        Raises:
            TooFewClips: Fewer than two in a set.
            MusiccmError: Different widths.
        """
        sets = []
        for side in ("real", "fake"):
            found = self.collected(side)
            clips = found.rows.double().split(found.counts) if found.counts else ()
            order = sorted(range(len(found.ids)), key=found.ids.__getitem__)
            sets.append(RowSet(tuple(found.ids[i] for i in order), tuple(clips[i] for i in order)))
        n_real, n_fake = (len(found.clips) for found in sets)
        name = type(self).__name__
        if min(n_real, n_fake) < 2:
            raise TooFewClips(f"{name}: expected at least 2 clips in each set, found {n_real} and {n_fake}")
        widths = [found.clips[0].shape[1] for found in sets]
        if widths[0] != widths[1]:
            raise MusiccmError(f"{name}: expected features of one width, found {widths[0]} and {widths[1]}")
        return sets[0], sets[1]
