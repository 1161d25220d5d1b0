"""A job while it waits and runs, and what others see of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from musiccm.serving.errors import Cancelled
from musiccm.serving.request import MusicRequest

STATES = ("queued", "running", "done", "failed", "cancelled")
FINISHED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class JobView:
    """A job at one moment.

    Args:
        id: Its name, which nobody can guess.
        owner: Whose it is; empty where there are no keys.
        state: One of `STATES`.
        priority: Larger ones are made first.
        request: What is made; seed and level are known.
        created_s: When it was asked for, in seconds since 1970.
        started_s: When it was taken up.
        finished_s: When it ended.
        position: Jobs that are taken up before it; None once it runs.
        eta_s: Seconds until it is done, as estimated; None where that cannot be known.
        calls: Network calls so far.
        total_calls: Of how many; None where that is not known beforehand.
        step: Sampling steps that have begun.
        steps: Of how many.
        error: Kind and message of what ended it.
        result: Facts of what was made.
    """

    id: str
    owner: str
    state: str
    priority: int
    request: MusicRequest
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    position: int | None = None
    eta_s: float | None = None
    calls: int = 0
    total_calls: int | None = None
    step: int = 0
    steps: int = 0
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.state in FINISHED

    @property
    def progress(self) -> float:
        """Part of the network calls that were made, 0 to 1."""
        if self.state == "done":
            return 1.0
        if self.total_calls:
            return min(1.0, self.calls / self.total_calls)
        return max(0, self.step - 1) / self.steps if self.steps else 0.0


@dataclass(eq=False)
class Job:
    """A job that waits or runs. Its fields are changed under the engine's lock, but for the counts of its own thread.

    Args:
        id: See `JobView`.
        owner: See `JobView`.
        priority: See `JobView`.
        request: See `JobView`.
        number: In order of arrival.
        created_s: See `JobView`.
        units: Windows times steps: what the estimate of its time counts.
        total_calls: See `JobView`.
        changed: Called after each network call.
    """

    id: str
    owner: str
    priority: int
    request: MusicRequest
    number: int
    created_s: float
    units: int = 1
    total_calls: int | None = None
    changed: Callable[[Job], None] = lambda job: None
    state: str = "queued"
    started_s: float | None = None
    calls: int = 0
    step: int = 0
    steps: int = 0
    device_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    requeue: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """What is smaller is made first."""
        return -self.priority, self.number

    def urgency(self) -> tuple[int, int]:
        """Whose network call comes first; smaller is first. A stream's changes as it plays."""
        return self.order

    def check(self) -> None:
        """End here, if that was asked for.

        Raises:
            Cancelled: It was.
        """
        if self.cancelled.is_set():
            raise Cancelled

    def begun(self, step: int, steps: int) -> None:
        """A network call of a step has begun."""
        self.step, self.steps = step, steps

    def called(self, device_s: float) -> None:
        """A network call has been made.

        Args:
            device_s: Its share of the device's time.
        """
        self.calls += 1
        self.device_s += device_s
        self.changed(self)

    def made_at_once(self) -> None:
        """All network calls have been made, as one."""
        if self.total_calls is not None:
            self.calls = self.total_calls
        self.changed(self)

    def worked(self, device_s: float) -> None:
        """The device has worked for it otherwise, as by decoding."""
        self.device_s += device_s

    def view(self, position: int | None = None, eta_s: float | None = None) -> JobView:
        """What others see of it."""
        return JobView(self.id, self.owner, self.state, self.priority, self.request, self.created_s, self.started_s,
                       None, position, eta_s, self.calls, self.total_calls, self.step, self.steps)


def now_s() -> float:
    """Seconds since 1970."""
    return time.time()
