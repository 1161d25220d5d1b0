"""Who is told of a job's changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Listeners:
    """What is called when jobs change; with a lock of its own, as device threads tell of each call.

    Safe for threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_changes: dict[str, set[Callable[[], None]]] = {}
        self._of_ends: dict[str, set[Callable[[], None]]] = {}

    def add(self, job: str, changed: Callable[[], None], end_only: bool) -> Callable[[], None]:
        """Tell of a job from now on.

        Args:
            job: Its id.
            changed: What is called.
            end_only: Tell of its end alone.

        Returns:
            What ends it.
        """
        listeners = self._of_ends if end_only else self._of_changes
        with self._lock:
            listeners.setdefault(job, set()).add(changed)

        def end() -> None:
            with self._lock:
                told = listeners.get(job, set())
                told.discard(changed)
                if not told:
                    listeners.pop(job, None)

        return end

    def tell(self, job: str, ended: bool = False) -> None:
        """Call those who listen to a job.

        Args:
            job: Its id.
            ended: Whether it has ended, or will not before the next start.
        """
        with self._lock:
            told = [*self._of_changes.get(job, ()), *(self._of_ends.get(job, ()) if ended else ())]
        for changed in told:
            try:
                changed()
            except Exception:
                log.exception("a listener failed")

    def tell_all(self) -> None:
        """Call all who listen, also those to ends."""
        with self._lock:
            jobs = {*self._of_changes, *self._of_ends}
        for job in jobs:
            self.tell(job, ended=True)
