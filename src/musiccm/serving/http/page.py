"""The page to make music on: files of the package, under a policy that lets them speak to this server alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Request, Response

from musiccm.errors import MusiccmError

FOLDER = Path(__file__).parents[1] / "page"
INDEX = "index.html"

MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
               ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:", "media-src blob:",
    "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'"))

HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
           "Cache-Control": "no-cache"}


def page_files() -> dict[str, bytes]:
    """What the page consists of, by the path that it is served at.

    Returns:
        The files; `/` is the page itself.

    Raises:
        MusiccmError: The installation lacks them.
    """
    found = {f"/page/{path.name}": path.read_bytes() for path in sorted(FOLDER.glob("*")) if path.suffix in MEDIA_TYPES}
    index = found.pop(f"/page/{INDEX}", None)
    if index is None:
        raise MusiccmError(f"{FOLDER / INDEX}: the page is not there; install musiccm again, or serve with --no-page")
    return {"/": index, **found}


def add_page(app: FastAPI, files: Mapping[str, bytes]) -> None:
    """Serve the page. Its paths are known beforehand: none leads to another file.

    Args:
        app: The app.
        files: What `page_files` gave.
    """
    for path, content in files.items():
        app.add_api_route(path, _answer(path, content), methods=["GET", "HEAD"], include_in_schema=False)


def _answer(path: str, content: bytes):  # type: ignore[no-untyped-def]
    kind = MEDIA_TYPES[Path(INDEX if path == "/" else path).suffix]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
