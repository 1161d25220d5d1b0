"""Writing in the background: one thread, and a queue that whoever fills it waits for when it is full."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

#: Files that may wait to be written while the next is made: what they hold is kept in memory.
AHEAD = 2


class BackgroundWriter:
    """Calls functions on one thread, in the order in which they are given.

    Args:
        ahead: Calls that may wait; a further one waits for the first of them.

    Attributes:
        spent_s: Seconds that the calls took.
        waited_s: Seconds for which `put` and `finish` waited.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self.ahead = ahead
        self.spent_s = self.waited_s = 0.0
        self._pool = ThreadPoolExecutor(1, "writer")  # its thread starts with the first call
        self._given: deque[Future[float]] = deque()

    def put(self, write: Callable[[], None], ready: Callable[[], None] = lambda: None) -> None:
        """Have a function called.

        Args:
            write: The function.
            ready: Called before it, and not counted: waits until what is written has been computed.

        Raises:
            Exception: What an earlier call raised.
        """
        while len(self._given) >= self.ahead:
            self._wait()
        self._given.append(self._pool.submit(_timed, write, ready))

    def finish(self) -> None:
        """Wait for all calls.

        Raises:
            Exception: What one of them raised.
        """
        while self._given:
            self._wait()

    def close(self) -> None:
        """End the thread; what was given before is still called, and its errors are passed over."""
        self._pool.shutdown()

    def _wait(self) -> None:
        start = time.perf_counter()
        try:
            self.spent_s += self._given.popleft().result()
        finally:
            self.waited_s += time.perf_counter() - start


def _timed(write: Callable[[], None], ready: Callable[[], None]) -> float:
    ready()
    start = time.perf_counter()
    write()
    return time.perf_counter() - start
