"""A connection that does not wait for ever: what uvicorn leaves unbounded before a request is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Bytes that request line and headers may have together; more are answered 400.
HEADER_BYTES = 32 * 1024
#: Seconds within which they have to come, from the connection's or the last answer's end on.
HEADER_S = 20.0


class PatientConnection(H11Protocol):
    """HTTP/1.1 by h11, which bounds headers; one that is silent, or slow with them, is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._look: asyncio.TimerHandle = self.loop.call_later(HEADER_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._look.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._since_s = self.loop.time()
        super().on_response_complete()

    def _check(self) -> None:
        left_s = HEADER_S
        # no request, one whose headers are not whole, or one that was answered and whose body does not come to its end
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is h11.IDLE or answered:
            left_s -= self.loop.time() - self._since_s
        if left_s <= 0:
            self.transport.close()
        else:
            self._look = self.loop.call_later(left_s, self._check)


def options() -> dict[str, Any]:
    """What `uvicorn.Config` is to be given for such connections."""
    return {"http": PatientConnection, "h11_max_incomplete_event_size": HEADER_BYTES}
