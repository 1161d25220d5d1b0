"""What was read from a clip against what was asked for, where that is no choice among tags: orders, counts, tempi."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Stands in a column for "not asked" or "not read"; all values that are read are above it.
NOTHING = -1.0


@dataclass(frozen=True)
class Same:
    """Right where every column that is asked for was read as asked.

    Args:
        columns: Of numbers that name a class.
    """

    columns: tuple[int, ...]

    def compare(self, read_BG: Tensor, asked_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Which clips are right, and of which anything is asked: [B] each."""
        read_BK, asked_BK = read_BG[:, self.columns], asked_BG[:, self.columns]
        stated_BK = asked_BK != NOTHING
        return ((read_BK == asked_BK) | ~stated_BK).all(dim=1), stated_BK.any(dim=1)


@dataclass(frozen=True)
class Tempo:
    """Right where a number is near the one that was asked for, octaves forgiven.

    Args:
        columns: The one column of beats a minute.
        within: Largest relative difference.
        octaves: Factors that a beat tracker may be off by.
    """

    columns: tuple[int, ...]
    within: float = 0.06
    octaves: tuple[float, ...] = (0.5, 1.0, 2.0)

    def compare(self, read_BG: Tensor, asked_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Which clips are right, and of which anything is asked: [B] each."""
        read_B, asked_B = read_BG[:, self.columns[0]], asked_BG[:, self.columns[0]]
        near = [(read_B * factor / asked_B - 1).abs() <= self.within for factor in self.octaves]
        return torch.stack(near).any(dim=0), asked_B != NOTHING


@dataclass(frozen=True)
class Count:
    """Right where as many events begin between two times as were asked for.

    Args:
        columns: When events begin, in seconds; what is asked are the number and the two times, in the first three.
    """

    columns: tuple[int, ...]

    def compare(self, read_BG: Tensor, asked_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Which clips are right, and of which anything is asked: [B] each."""
        times_BK = read_BG[:, self.columns]
        number_B, start_B, end_B = asked_BG[:, self.columns[:3]].unbind(dim=1)
        within_BK = (times_BK >= start_B[:, None]) & (times_BK < end_B[:, None]) & (times_BK != NOTHING)
        return within_BK.sum(dim=1) == number_B, number_B != NOTHING


Reading = Same | Tempo | Count
