"""How far a long work is: a bar on a terminal, now and then a whole line in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from musiccm.terminal import interactive
from musiccm.terminal import shown as safe

EVERY_SHARE, EVERY_S, LEAST_S = 0.1, 30.0, 2.0
"""A line comes after a tenth of the work or half a minute, whichever is sooner, but never two within two seconds."""


def duration(seconds: float) -> str:
    """`0:03:29`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Lines:
    """When a log's next line is due, and what it says of pace and end.

    Args:
        label: What is done.
        total: Units of work; None where that is not known.
        unit: What is counted.
        done: Units that were done before and do not count towards the pace.
        clock: Seconds.
    """

    def __init__(
        self, label: str, total: float | None, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.unit, self._clock = label, unit, clock
        self.total = total if total is not None and math.isfinite(total) and total > 0 else None
        self._skipped = self._shown = done
        self._started = self._last = clock()

    def skip(self, units: int) -> None:
        """Count units as done, but not towards the pace."""
        self._skipped += units

    def due(self, done: int) -> bool:
        """Whether it is time for a line; the last one comes when the loop ends."""
        if self.total is not None and done >= self.total:
            return False
        since = self._clock() - self._last
        tenth = self.total is not None and done - self._shown >= EVERY_SHARE * self.total
        return done > self._shown and since >= (LEAST_S if tenth else EVERY_S)

    def line(self, done: int, more: str = "") -> str:
        """The line, which counts as shown."""
        self._shown, self._last = done, self._clock()
        seconds = self._last - self._started
        pace = (done - self._skipped) / seconds if seconds > 0 else 0.0
        said = f"{self.label}: {done}"
        if self.total is not None:
            said += f"/{self.total:.0f} {self.unit} ({min(1.0, done / self.total):.0%})"
        else:
            said += f" {self.unit}"
        if pace > 0:
            said += f", {pace:.3g} {self.unit}/s"
            if self.total is not None and done < self.total:
                said += f", ETA {duration((self.total - done) / pace)}"
        if self.total is None or done >= self.total:
            said += f", took {duration(seconds)}"
        return safe(said + more)

    def print(self, done: int, more: str = "") -> None:
        """Put the line onto the standard error."""
        print(self.line(done, more), file=sys.stderr, flush=True)


class Progress:
    """The progress of one loop, on the standard error.

    Args:
        total: Units of work; None where that is not known.
        label: What is done.
        unit: What is counted.
        shown: Whether to show anything.
    """

    def __init__(self, total: int | None, label: str, unit: str, shown: bool = True) -> None:
        self._done = 0
        self._bar: Any = None
        self._lines: Lines | None = None
        if shown and interactive():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=safe(label), unit=unit, dynamic_ncols=True)
        elif shown:
            self._lines = Lines(label, total, unit)

    def update(self, units: int = 1) -> None:
        """Count units that were done."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        elif self._lines is not None and self._lines.due(self._done):
            self._lines.print(self._done)

    def skip(self, units: int) -> None:
        """Count units that need not be done: they do not count towards the pace."""
        if self._bar is not None:
            self._bar.initial += units
        if self._lines is not None:
            self._lines.skip(units)
        self.update(units)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._lines is not None and error is None:
            self._lines.print(self._done)
