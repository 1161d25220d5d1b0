"""Every answer that is no success is a problem of RFC 9457, and says what to do."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from musiccm.errors import MusiccmError
from musiccm.serving.errors import KeyReused, NoRoom, NotFound, Rejected, TooLarge, UnsupportedAudio

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Fields that one problem names, and characters of each of its texts.
MAX_ERRORS, MAX_CHARS = 20, 1000

SCHEMA = {
    "type": "object", "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object", "properties": {
            "field": {"type": "string"}, "message": {"type": "string"}}}},
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the problems that an endpoint may answer with."""
    return {status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": SCHEMA}}}
            for status in statuses}


def problem(
    status: int, detail: str, kind: str | None = None, headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> JSONResponse:
    """A problem.

    Args:
        status: Of HTTP.
        detail: What is wrong, and what to do.
        kind: What machines tell it by; by default the status' own name.
        headers: Of the answer.
        errors: Fields that are wrong, with a message each.

    Returns:
        The answer.
    """
    phrase = HTTPStatus(status).phrase
    content: dict[str, Any] = {
        "type": f"urn:musiccm:problem:{(kind or phrase).lower().replace(' ', '-').replace('_', '-')}",
        "title": phrase, "status": status, "detail": _brief(detail),
    }
    if errors:
        content["errors"] = [{key: _brief(text) for key, text in one.items()} for one in errors[:MAX_ERRORS]]
    return JSONResponse(content, status, dict(headers or {}), MEDIA_TYPE)


def of_error(error: MusiccmError) -> JSONResponse:
    """The problem that an error of the engine is to clients."""
    detail = str(error)
    if isinstance(error, Rejected):
        status = 503 if error.kind == "draining" else 429
        return problem(status, detail, error.kind, {"Retry-After": str(math.ceil(error.retry_after_s))})
    if isinstance(error, NoRoom):
        return problem(507, detail, "no_room", {"Retry-After": "60"})
    for of, status in ((NotFound, 404), (TooLarge, 413), (UnsupportedAudio, 415)):
        if isinstance(error, of):
            return problem(status, detail)
    field, found, rest = detail.partition(": ")
    named = found and re.sub(r"[._-]|, ", "", field).isidentifier()
    kind = "key_reused" if isinstance(error, KeyReused) else "refused"
    return problem(422, detail, kind, errors=[{"field": field, "message": rest}] if named else ())


def _brief(text: str) -> str:
    """A text that may quote what a client sent, whatever the length of that."""
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS - 1]}…"


def methods(app: FastAPI, scope: Scope) -> list[str]:
    """What the endpoints of a path take.

    Args:
        app: The app.
        scope: Of a request to the path.

    Returns:
        Names of methods, sorted.
    """
    found: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(scope)
        if match != Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _invalid(one: Mapping[str, Any]) -> dict[str, str]:
    place, *path = one["loc"]
    if one["type"] == "json_invalid":  # the path is how many characters could be read
        at = f" at character {path[0]}" if path else ""
        return {"field": str(place), "message": f"expected JSON, found none{at} ({one['ctx']['error']})"}
    return {"field": ".".join(map(str, path)) or str(place), "message": one["msg"]}


def install(app: FastAPI) -> None:
    """Let an app answer with problems alone."""

    @app.exception_handler(MusiccmError)
    async def refused(request: Request, error: MusiccmError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of the first endpoint of a path alone
            headers["Allow"] = ", ".join(methods(app, request.scope))
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_invalid(one) for one in error.errors()]
        first = errors[0]
        return problem(422, f"{first['field']}: {first['message']}", "invalid", errors=errors)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        log.info("%s %s: the client has gone", request.method, request.url.path)
        return problem(400, "the body ended before it was whole")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "the server failed; its log says how")
