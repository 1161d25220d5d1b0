"""Columns of strings for files that are mapped from the disk; like files.py, everyone may import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np


class StringColumn(Sequence[str]):
    """Strings as one run of UTF-8 bytes and the places where they end: a million cost their bytes and no objects.

    Args:
        data_X: The bytes, uint8.
        ends_N1: Where string n begins, and at n + 1 where it ends; int64.
    """

    def __init__(self, data_X: np.ndarray, ends_N1: np.ndarray) -> None:
        self.data_X, self.ends_N1 = data_X, ends_N1

    @classmethod
    def pack(cls, strings: Sequence[str]) -> StringColumn:
        """Store strings."""
        # Names of files may hold what is no sound UTF-8.
        encoded = [string.encode(errors="surrogatepass") for string in strings]
        ends = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(string) for string in encoded], out=ends[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends_N1) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        return self.data_X[self.ends_N1[number] : self.ends_N1[number + 1]].tobytes().decode(errors="surrogatepass")
