"""A stream: a job whose sound is taken while it is made, and kept nowhere."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.long_form import MusicStream
from musiccm.serving.errors import Cancelled
from musiccm.serving.jobs import Job

LEAD_S = 5.0
"""A stream that is less than this ahead of who listens comes before all jobs, and beyond, behind all: a client that
takes sound faster than it plays keeps nobody waiting."""

CHUNKS = 8
"""Chunks that wait for a client; then the stream waits for it, too."""

_TICK_S = 0.25


@dataclass(eq=False)
class StreamJob(Job):
    """A job whose sound is sent while it is made.

    Args:
        made_s: Seconds of sound so far.
        heard_from_s: When the first sound was there, by the monotonic clock.
    """

    made_s: float = 0.0
    heard_from_s: float | None = field(default=None)

    def urgency(self) -> tuple[int, int]:
        """Before all others while it is hardly ahead of real time, and then behind them."""
        played_s = 0.0 if self.heard_from_s is None else time.monotonic() - self.heard_from_s
        return (-2**31 if self.made_s - played_s < LEAD_S else 2**31), self.number


class LiveStream:
    """What a client of a stream holds: an iterator over chunks of sound, whose text can be changed.

    Args:
        job: Its job.
        music: The stream of the model.
        sample_rate_hz: Its rate.
        stall_s: A client that takes no chunk for so long has gone.
        limit_s: Where a stream without an end is ended.
        finish: Called once at the end with what ended it, if anything.
    """

    def __init__(
        self, job: StreamJob, music: MusicStream, sample_rate_hz: int, stall_s: float, limit_s: float,
        finish: Callable[[StreamJob, BaseException | None], None],
    ) -> None:
        self.job, self.sample_rate_hz, self.samples = job, sample_rate_hz, music.samples
        self._music, self._stall_s, self._limit_s, self._finish = music, stall_s, limit_s, finish
        self._chunks: queue.Queue[Tensor | BaseException | None] = queue.Queue(maxsize=CHUNKS)
        self._changing = threading.Lock()
        self.thread = threading.Thread(target=self._play, name=f"stream {job.id[:8]}", daemon=True)

    def take(self, timeout_s: float) -> Tensor | None:
        """The next chunk, [S].

        Args:
            timeout_s: How long to wait for it.

        Returns:
            The chunk; None at the end.

        Raises:
            queue.Empty: There is none yet.
            MusiccmError: The stream has failed.
        """
        found = self._chunks.get(timeout=timeout_s)
        if isinstance(found, BaseException):
            raise found
        return found

    def __iter__(self) -> Iterator[Tensor]:
        while (chunk := self.take(self._stall_s)) is not None:
            yield chunk

    def set_prompt(self, text: str) -> float:
        """Change the text; see `MusicStream.set_prompt`."""
        with self._changing:
            return self._music.set_prompt(text)

    def close(self) -> None:
        """The client has gone."""
        self.job.cancelled.set()

    def _play(self) -> None:
        error: BaseException | None = None
        try:
            with self._music as music:
                for chunk in music:
                    self.job.heard_from_s = self.job.heard_from_s or time.monotonic()
                    self.job.made_s += len(chunk) / self.sample_rate_hz
                    self._put(chunk)
                    if self.samples is None and self.job.made_s >= self._limit_s:
                        break
                if len(last := music.rest()):
                    self._put(last)
        except BaseException as found:
            error = found
        try:
            self._put(error if isinstance(error, MusiccmError) else None, ending=True)
        finally:
            self._finish(self.job, error)

    def _put(self, chunk: Tensor | BaseException | None, ending: bool = False) -> None:
        since = time.monotonic()
        while True:
            try:
                self._chunks.put(chunk, timeout=_TICK_S)
                return
            except queue.Full:
                if ending and (self.job.cancelled.is_set() or time.monotonic() - since > self._stall_s):
                    return
                if not ending:
                    self.job.check()
                    if time.monotonic() - since > self._stall_s:
                        raise Cancelled from None
