"""What the parts of a work take, also where a GPU does them while the host goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch


class PartClock:
    """Adds up seconds by part: of the host, or on a GPU between two marks in its queue, which nobody waits for.

    Args:
        parts: Names of the parts.

    Attributes:
        seconds: By part; on a GPU of what was done when it was last looked at.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._marks: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def of(self, part: str, device: torch.device) -> Iterator[None]:
        """Count what is done within, on a device, towards a part."""
        if device.type != "cuda":
            start = perf_counter()
            yield
            self.seconds[part] += perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((part, begin, end))
        while self._marks and self._marks[0][2].query():
            self._count()

    def finish(self) -> None:
        """Wait for what a GPU has not done yet."""
        while self._marks:
            self._marks[0][2].synchronize()
            self._count()

    def _count(self) -> None:
        part, begin, end = self._marks.popleft()
        self.seconds[part] += begin.elapsed_time(end) / 1000
