"""What the engine refuses, by kind, so that a server can answer each in its own way."""

from __future__ import annotations

from musiccm.errors import MusiccmError


class Rejected(MusiccmError):
    """There is no room for more work now; the same request may be made again later.

    Args:
        message: What is full, and what to do.
        kind: `queue_full`, `streams_full`, `uploads_full`, `evidence_full` or `draining`.
        retry_after_s: When there may be room.
    """

    def __init__(self, message: str, kind: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s


class TooLarge(MusiccmError):
    """An upload has more bytes, or lasts longer, than the engine takes."""


class UnsupportedAudio(MusiccmError):
    """An upload is no audio of a format that the engine reads."""


class NotFound(MusiccmError):
    """There is no such job, upload or result, or it is somebody else's."""


class NoRoom(MusiccmError):
    """The disk is full, or takes no more files."""


class KeyReused(MusiccmError):
    """An idempotency key came again with another request."""


class Cancelled(Exception):
    """A job is to end now: somebody asked for it, or the engine closes."""
