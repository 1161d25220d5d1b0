"""A small server that takes the answers of a listening test, for a test within a room or behind a proxy."""

from __future__ import annotations

import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.answers import parsed
from musiccm.files import write_json
from musiccm.texts import load_json

#: Of one listener's answers; a page of them takes about 300 bytes.
MOST_BYTES = 1 << 20
#: A client that sends nothing for so long is let go.
TIMEOUT_S = 10.0
_TEST = re.compile("[0-9a-f]{16}")


class AnswerStore:
    """Answers in a folder, a file a listener, each written whole.

    Args:
        folder: Where they lie.
        test: The test that they must be of; None takes any.
        most: Files that it may hold.
    """

    def __init__(self, folder: Path, test: str | None = None, most: int = 10_000) -> None:
        self.folder, self.test, self.most = folder, test, most
        self._lock = threading.Lock()

    def take(self, body: bytes) -> Path:
        """Keep the answers of a request.

        A listener who sends again, with more answers or others, replaces the file; somebody else of that name does not.

        Args:
            body: What was sent.

        Returns:
            The file.

        Raises:
            MusiccmError: It is no answers of this test, another listener of that name is there, or the folder holds as
                many as it may.
        """
        try:
            content: Any = load_json(body.decode("utf-8"))
        except ValueError:
            raise MusiccmError("the request: not valid JSON") from None
        listener = parsed(content, "the request")
        if self.test is not None and content["test"] != self.test:
            raise MusiccmError("the request: answers of another test")
        if not _TEST.fullmatch(content["test"]):
            raise MusiccmError("the request: test: expected 16 hexadecimal digits")
        path = self.folder / f"answers-{content['test']}-{listener.name}.json"
        with self._lock:
            if path.exists():
                before = parsed(json.loads(path.read_text(encoding="utf-8")), str(path))
                if before.started != listener.started:
                    raise MusiccmError("the request: answers of another listener of this name are there")
                if before.saved > listener.saved:
                    return path
            elif sum(1 for _ in self.folder.glob("answers-*.json")) >= self.most:
                raise MusiccmError("the request: no more answers are taken")
            write_json(path, content)
        return path


def answer_server(store: AnswerStore, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; `serve_forever` runs it.

    Args:
        store: Where answers go.
        port: Its port; 0 takes a free one.

    Returns:
        The server, which holds the port.

    Raises:
        MusiccmError: The port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version = "musiccm"
        sys_version = ""

        def do_POST(self) -> None:
            """Take answers."""
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self._answer(HTTPStatus.LENGTH_REQUIRED, "the length is missing")
            elif len(length) > 9 or int(length) > MOST_BYTES:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES} bytes")
            else:
                try:
                    body = self.rfile.read(int(length))
                except OSError:  # too slow, or gone
                    self.close_connection = True
                    return
                try:
                    store.take(body)
                except MusiccmError as error:
                    self._answer(HTTPStatus.BAD_REQUEST, str(error))
                else:
                    self._answer(HTTPStatus.OK, "taken")

        def do_OPTIONS(self) -> None:
            """Pages of any origin may send answers: one that is opened as a file has none."""
            self._answer(HTTPStatus.OK, "")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = json.dumps({"said": text}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Methods", "POST")
            self.send_header("Access-Control-Allow-Headers", "Content-Type")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody's address is written down."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise MusiccmError(f"port: {port} cannot be had ({error}); choose another, or 0 for a free one") from error
