"""What is asked of a request before the app sees it: a host, a key, a body of a bounded size that comes in time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musiccm.errors import MusiccmError
from musiccm.serving.http.problems import problem
from musiccm.serving.uploads import secret_hash
from musiccm.texts import read_text

log = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/ready", "/openapi.json")
UPLOADS = "/v1/uploads"
JSON_BYTES = 256 * 2**10
MIN_KEY_CHARS = 16

_AUDIO = re.compile(r"audio/[\w.+-]+|application/octet-stream|video/ogg|application/ogg")


@dataclass(frozen=True)
class Patience:
    """How long the server waits for its clients.

    Args:
        chunk_s: For the next bytes of a body.
        body_s: For a whole body.
        send_s: Until a client takes what it is sent.
    """

    chunk_s: float = 20.0
    body_s: float = 300.0
    send_s: float = 60.0


class Keys:
    """The keys that open the server, of which only digests are kept.

    Args:
        keys: The keys; none lets everybody in.

    Raises:
        MusiccmError: A key is so short that it can be guessed, or has characters that no header carries.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        for key in keys:
            if len(key) < MIN_KEY_CHARS or not re.fullmatch(r"[\x21-\x7e]+", key):
                raise MusiccmError(f"keys: expected at least {MIN_KEY_CHARS} printable characters without spaces a "
                                   f"key, found one of {len(key)}; `openssl rand -hex 32` makes one")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file of keys, one a line; empty lines and those that begin with # are passed over.

        Raises:
            MusiccmError: There is no such file, no key in it, or a bad one.
        """
        try:
            lines = [line.strip() for line in read_text(path).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise MusiccmError(f"{path}: the file of keys cannot be read ({type(error).__name__}); expected a key a "
                               "line") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise MusiccmError(f"{path}: expected a key a line, found none")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """Who an `Authorization` header is of.

        Args:
            authorization: The header.

        Returns:
            A name that is one a key; None where the key is wrong or missing.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # all are compared, each in constant time, so that the time tells nothing
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        return secret_hash(key.strip()) if any(fits) and scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """A middleware in front of everything.

    Without keys only requests to a name of this machine are taken: a page of somebody else's, whose name was made to
    lead here, is not. With keys, a request without a right one is refused before its body is read.

    Args:
        app: What is behind it.
        keys: Who may come in.
        upload_bytes: Size of an upload.
        patience: How long clients are waited for.
        any_host: Take requests to any name also without keys.
        open_paths: Paths that need no key, beside `OPEN_PATHS`.
        posts: Whether an endpoint takes POST where a request leads; others are answered by the app without a body.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, upload_bytes: int, patience: Patience | None = None, any_host: bool = False,
        open_paths: Collection[str] = (), posts: Callable[[Scope], bool] = lambda scope: True,
    ) -> None:
        self.app, self.keys, self.upload_bytes = app, keys, upload_bytes
        self.patience, self.any_host = patience or Patience(), any_host
        self.posts = posts
        self.open_paths = frozenset((*OPEN_PATHS, *open_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        refusal = self._refusal(scope, headers, path)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        limit = self.upload_bytes if path == UPLOADS else JSON_BYTES
        try:
            await self.app(scope, self._bounded(receive, limit), self._patient(send))
        except _Slow:
            log.info("%s %s: the client took nothing for %g s and was let go", scope["method"], path,
                     self.patience.send_s)

    def _refusal(self, scope: Scope, headers: Headers, path: str):  # type: ignore[no-untyped-def]
        if not self.keys and not self.any_host:
            name = re.sub(r":\d+$", "", headers.get("host", "")).lower()
            if not is_loopback(name):
                return problem(421, "without keys, requests are taken under localhost and addresses of this machine "
                                    "alone, such as 127.0.0.1")
        owner: str | None = ""
        if self.keys and path not in self.open_paths:
            owner = self.keys.owner(headers.get("authorization"))
            if owner is None:
                return problem(401, "expected the header `Authorization: Bearer KEY` with a key of this server",
                               headers={"WWW-Authenticate": "Bearer"})
        scope.setdefault("state", {})["owner"] = owner
        if scope["method"] != "POST" or not self.posts(scope):  # no endpoint takes a body by another method
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if path == UPLOADS:
            if not _AUDIO.fullmatch(kind):
                return problem(415, f"expected a body of audio/... or application/octet-stream, found {kind or 'none'}",
                               headers={"Accept": "audio/*, application/octet-stream"})
        elif kind != "application/json":
            return problem(415, f"expected a body of application/json, found {kind or 'none'}",
                           headers={"Accept": "application/json"})
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            return problem(415, f"expected a body without Content-Encoding, found {coding[:40]}; send it as it is",
                           headers={"Accept-Encoding": "identity"})
        limit = self.upload_bytes if path == UPLOADS else JSON_BYTES
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > limit:
            return problem(413, f"expected a body of at most {limit} bytes, found {int(stated)}",
                           headers={"Connection": "close"})
        return None

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        taken, whole, since_s = 0, False, time.monotonic()

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            left_s = min(self.patience.chunk_s, since_s + self.patience.body_s - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(0.01, left_s))
            except (TimeoutError, asyncio.TimeoutError):
                raise HTTPException(408, "the body did not come in time; send it again", {"Connection": "close"}) \
                    from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
            if taken > limit:
                raise HTTPException(413, f"expected a body of at most {limit} bytes, found more",
                                    {"Connection": "close"})
            return message

        return bounded

    def _patient(self, send: Send) -> Send:
        async def patient(message: Message) -> None:
            try:
                await asyncio.wait_for(send(message), self.patience.send_s)
            except (TimeoutError, asyncio.TimeoutError):
                raise _Slow from None

        return patient


class _Slow(Exception):
    """A client takes nothing."""
