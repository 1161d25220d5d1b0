"""What generated clips are compared with: CLAP rows of the training clips, those of one clip side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import require_rows


class Gallery(ABC):
    """Rows in the order of their clips; clip `c` has rows `first_row[c]` to `first_row[c + 1]`.

    Attributes:
        ids: Id of each clip.
        first_row: Where the rows of each clip begin, and the end of the last, int64 `[C + 1]`.
        width: Numbers in a row.
        unit: Whether every row has length 1 to within float32's rounding, or is zero.
    """

    ids: Sequence[str]
    first_row: np.ndarray
    width: int
    unit: bool

    @abstractmethod
    def read(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last`, `[last - first, D]`, float32 or float64, on the CPU."""

    def start_s(self, row: int) -> float | None:
        """Where in its clip the window of a row begins, in seconds; None where that is not known."""
        return None

    @property
    def n_clips(self) -> int:
        """Clips."""
        return len(self.first_row) - 1

    @property
    def n_rows(self) -> int:
        """Rows."""
        return int(self.first_row[-1])

    def refuse_width(self, width: int) -> None:
        """Refuse queries of another width.

        Args:
            width: Numbers in a row of theirs.

        Raises:
            MusiccmError: It is another.
        """
        if width != self.width:
            raise MusiccmError(f"SIM_AA: expected embeddings as wide as the training set's {self.width}, found "
                               f"{width}; were both embedded by the same CLAP?")


class RowGallery(Gallery):
    """A gallery in memory.

    Args:
        rows_ND: CLAP audio embeddings of every training clip, `[N, D]`, of any length; a clip may have several windows,
            one row each under the same id, side by side or not.
        ids: Clip id of each row.
        starts_s: Where in its clip each row's window begins.

    Raises:
        MusiccmError: No row, rows and ids that do not match, or rows that are not finite.
    """

    unit = False

    def __init__(self, rows_ND: Tensor, ids: Sequence[str], starts_s: Sequence[float] | None = None) -> None:
        require_rows("training CLAP embeddings", rows_ND, ids)
        if not len(ids):
            raise MusiccmError("SIM_AA: expected training embeddings, found none; encode the training set first")
        number: dict[str, int] = {}
        clip_of_row = np.array([number.setdefault(clip_id, len(number)) for clip_id in ids])
        rows = rows_ND.detach().cpu()
        self._rows = rows if rows.dtype == torch.float64 else rows.float()
        self._starts_s = None if starts_s is None else np.asarray(starts_s, dtype=np.float64)
        if (np.diff(clip_of_row) < 0).any():
            order = np.argsort(clip_of_row, kind="stable")
            self._rows = self._rows[torch.from_numpy(order)]
            self._starts_s = None if self._starts_s is None else self._starts_s[order]
        self.ids = list(number)
        self.first_row = np.concatenate([[0], np.cumsum(np.bincount(clip_of_row))])
        self.width = rows.shape[1]

    def read(self, first: int, last: int) -> Tensor:
        """Rows as they were given."""
        return self._rows[first:last]

    def start_s(self, row: int) -> float | None:
        """The start that was given, if one was."""
        return None if self._starts_s is None else float(self._starts_s[row])
