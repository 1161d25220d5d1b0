"""What runs the app, uvicorn: one process, which ends in good order."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from musiccm import signals
from musiccm.errors import MusiccmError
from musiccm.serving.engine import Engine
from musiccm.serving.http.connection import options
from musiccm.terminal import say

SEND_BUFFER_BYTES = 2**18
#: Beyond the time that jobs are given at the end, for answers that say that it is over.
LAST_WORDS_S = 5


@dataclass(frozen=True)
class Listening:
    """Where the server listens, and how long it waits at its end.

    Args:
        host: Address.
        port: Port; 0 for any that is free.
        drain_s: How long jobs that run may go on after a signal.
        max_connections: Connections and requests at once.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_s: float = 30.0
    max_connections: int = 512


class _Server(uvicorn.Server):
    """A server whose signals are those of `musiccm.signals`: it looks for one several times a second."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_s: float) -> None:
        super().__init__(config)
        self._engine, self._drain_s = engine, drain_s
        self.ends_at_s: float | None = None

    def capture_signals(self) -> Any:
        """A stretch without handlers of uvicorn's: the command's own stay."""
        return contextlib.nullcontext()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; called ten times a second."""
        if signals.received() is not None and self.ends_at_s is None:
            say(f"{signals.name_of(signals.received() or 0)}: no more jobs are taken; those that run are finished, "
                "those that wait are kept", to_stderr=True)
            self._engine.drain(self._drain_s)
            self.ends_at_s = time.monotonic()
        if self.ends_at_s is not None and not self.should_exit:
            # until then it listens, so that who comes is told to come again
            left_s = self.ends_at_s + self._drain_s - time.monotonic()
            state = self._engine.state()
            if left_s <= 0 or state.running + state.streams == 0:
                self.config.timeout_graceful_shutdown = round(max(0.0, left_s)) + LAST_WORDS_S
                self.should_exit = True
        return await super().on_tick(counter)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address.
        port: Port.

    Returns:
        It.

    Raises:
        MusiccmError: The address is not here, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A small buffer, so that it is noticed soon where a client takes nothing; connections inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.bind(address)
    except OSError as error:
        raise MusiccmError(f"--host {host} --port {port}: cannot be listened on ({error.strerror or error}); choose "
                           "another port, or 0 for any that is free") from error
    return listening


def make_server(app: FastAPI, engine: Engine, where: Listening) -> _Server:
    """A server of uvicorn's, without lifespan, WebSockets, access log or belief in forwarded addresses.

    Args:
        app: The app.
        engine: Its engine.
        where: How to serve.

    Returns:
        The server; it runs on sockets that it is given.
    """
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
        ws="none", limit_concurrency=where.max_connections, timeout_keep_alive=15,
        timeout_graceful_shutdown=round(where.drain_s) + LAST_WORDS_S, **options())
    return _Server(config, engine, where.drain_s)


def serve(app: FastAPI, engine: Engine, where: Listening, listening: socket.socket) -> None:
    """Serve until a signal comes, then end in good order.

    Jobs that run are given `drain_s`; what is not done by then, and what waits, is taken up at the next start.

    Args:
        app: The app.
        engine: Its engine, which is closed in the end.
        where: How to serve.
        listening: What to listen on.
    """
    signals.hold()  # from here on a signal is noted, and answered by `on_tick`
    try:
        server = make_server(app, engine, where)
        server.run(sockets=[listening])
        spent_s = 0.0 if server.ends_at_s is None else time.monotonic() - server.ends_at_s
        engine.close(max(0.0, where.drain_s - spent_s))
    finally:
        signals.release()
