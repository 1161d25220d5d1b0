"""Requests that Schemathesis makes of the API's own description, right and wrong ones, alone and in rows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from musiccm.serving import Engine, EngineSettings, Limits, ServedModel
from musiccm.serving.http.app import make_app
from musiccm.serving.http.gate import Keys
from musiccm.serving.http.metrics import Metrics
from musiccm.serving.http.server import Listening, bound_socket, make_server

pytestmark = pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None,
                                reason="needs schemathesis: pip install schemathesis")
KEY = "0123456789abcdef"
#: What cannot hold: a description says neither that fields exclude each other nor what is no music, and a job that is
#: deleted has ended, but can be looked at as before.
NOT_OURS = ("positive_data_acceptance", "use_after_free")


@pytest.fixture(scope="module")
def address(served: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key, short pieces and small uploads."""
    metrics = Metrics()
    limits = Limits(max_seconds=1, max_stream_s=1, max_steps=2, max_upload_bytes=100_000, max_upload_s=1)
    with Engine([served], tmp_path_factory.mktemp("engine"), EngineSettings(limits=limits), metrics.told) as engine:
        listening = bound_socket("127.0.0.1", 0)
        server = make_server(make_app(engine, metrics, Keys([KEY])), engine, Listening(drain_s=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


def test_every_answer_is_as_it_is_described(address: str, tmp_path: Path) -> None:
    """No failure of the server's, no status, header or body that OpenAPI does not state, nothing without the key."""
    found = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--wait-for-schema", "20",
         "--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--exclude-checks", ",".join(NOT_OURS),
         "--seed", "1", "--generation-deterministic", "--max-examples", "5", "--no-color"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-1000:]
    assert "Tested: 17" in found.stdout and "Coverage\n" in found.stdout, found.stdout[-3000:]
