"""serve models by workers of LitServe, on all GPUs of one machine (docs/deployment.md)."""

import argparse
import http.client
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, Any

# Run as a file, this one is found by its own name, before the library.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != HERE]

import litserve  # noqa: E402
from fastapi import Body, Header, HTTPException, Response  # noqa: E402

from musiccm import signals  # noqa: E402
from musiccm.cli import run  # noqa: E402
from musiccm.commands import serve as server  # noqa: E402
from musiccm.errors import MusiccmError  # noqa: E402
from musiccm.serving import load_model  # noqa: E402
from musiccm.serving.elsewhere import load_elsewhere  # noqa: E402
from musiccm.serving.replica import Replica, ReplicaLost  # noqa: E402

PATH, KEY_HEADER, BYTES = "/answer", "X-Replica-Key", "application/octet-stream"


class Answering(litserve.LitAPI):
    """A replica as a worker of LitServe's.

    Args:
        models: What `--model` names.
        options: The arguments of `load_model` behind the device.
        packages: What `--compiled` names, by model.
        key: What the engine shows: others on this machine can reach the port, too.
    """

    def __init__(self, models: list[str], options: tuple[Any, ...], packages: dict[str, Path], key: str) -> None:
        super().__init__(api_path=PATH)
        self._models, self._options, self._packages, self._key = models, options, packages, key

    def setup(self, device: str) -> None:
        """Load the models; called in the worker."""
        signals.in_worker()
        self._replica = Replica([load_model(one, device, *self._options, compiled=self._packages.get(one))
                                 for one in self._models])

    def authorize(self, key: Annotated[str, Header(alias=KEY_HEADER)] = "") -> None:
        """Let in who knows the key."""
        if not secrets.compare_digest(key.encode(), self._key.encode()):
            raise HTTPException(401)

    def decode_request(self, request: Annotated[bytes, Body(media_type=BYTES)]) -> bytes:
        """The question."""
        return request

    def predict(self, x: bytes) -> bytes:
        """See `Replica.answer`."""
        return self._replica.answer(x)

    def encode_response(self, output: bytes) -> Response:
        """The answer as it is."""
        return Response(output, media_type=BYTES)


class Answers(dict[str, Any]):
    """What LitServe waits for, by question.

    Its monitor of workers goes through all of it on one thread while its server changes it on another, which ends the
    monitor of a plain dict: a worker that ends from then on would have no other begun in its place.
    """

    def items(self) -> Any:
        """As they are now."""
        return self.copy().items()


class Workers:
    """LitServe with its workers, begun when the first question is asked.

    Args:
        args: The options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._key, self._port = secrets.token_urlsafe(32), 0
        api = Answering(args.model or [server.DEFAULT_MODEL], (args.decoder, args.half, args.compile),
                        server.packages(args), self._key)
        self._server = litserve.LitServer(
            api, accelerator=args.device, devices=args.gpus or "auto", workers_per_device=args.replicas, timeout=False,
            restart_workers=True, disable_openapi_url=True)
        self._server.response_buffer = Answers()
        self.count, self.on_gpu = len(self._server.devices) * args.replicas, self._server.devices != ["cpu"]
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    def ask(self, question: bytes) -> bytes:
        """See `Ask`. LitServe begins another worker where one has ended, but may never say what that one had taken."""
        with self._beginning:
            if self._thread is None:
                self._begin()
        workers = list(self._server.inference_workers)  # held, as their sentinels are theirs
        ended = wait([worker.sentinel for worker in workers], 0)
        alive = [worker.sentinel for worker in workers if worker.sentinel not in ended]
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("POST", PATH, question, {KEY_HEADER: self._key, "Content-Type": BYTES})
            if connection.sock not in wait([connection.sock, *alive]):
                raise ReplicaLost("a worker has ended, perhaps over this")
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise ReplicaLost(f"LitServe answers {answer.status}")
            return answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ReplicaLost(f"LitServe: {error}") from error
        finally:
            connection.close()

    def _begin(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        # as threads, so that its workers are this process's own, which sees them end; daemons, as these do not end
        self._thread = threading.Thread(target=self._server.run, daemon=True, kwargs={
            "host": "127.0.0.1", "port": self._port, "num_api_servers": 1, "api_server_worker_type": "thread",
            "generate_client_file": False, "log_level": "critical"})
        self._thread.start()
        while not self._ready():
            if not self._thread.is_alive():
                raise MusiccmError("LitServe could not begin its workers; what they say is above")
            time.sleep(0.1)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("GET", "/health", headers={KEY_HEADER: self._key})
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def close(self) -> None:
        """End the workers."""
        if self._thread is not None and self._thread.is_alive():
            self._server._shutdown_event.set()  # what its own ways of ending it set
            self._thread.join(30)


@contextmanager
def models_in_workers(args: argparse.Namespace) -> Iterator[server.Load]:
    """Models whose networks compute in LitServe's workers.

    Args:
        args: The options.

    Yields:
        What loads one.
    """
    workers = Workers(args)
    args.lanes = workers.count * args.ongoing
    args.running = max(args.running, 2 * args.lanes)
    args.together |= workers.on_gpu
    try:
        yield lambda one: load_elsewhere(one, workers.ask, args.decoder, args.half)
    finally:
        workers.close()


def parser() -> argparse.ArgumentParser:
    """The options: those of `musiccm serve`, and how many workers there are."""
    made = server.make_parser("deploy/litserve.py", __doc__)
    more = made.add_argument_group("replicas")
    more.add_argument("--replicas", type=server.whole(1, 256), default=1,
                      help="workers a GPU, or on the CPU (default %(default)s)")
    more.add_argument("--gpus", type=server.whole(1, 64), metavar="N", help="GPUs that are used (default: all)")
    more.add_argument("--ongoing", type=server.whole(1, 64), default=1, metavar="N",
                      help="questions under way a worker; 2 keeps a GPU busy while one is on its way (default "
                           "%(default)s)")
    return made


def main(argv: list[str]) -> int:
    """Serve until a signal comes."""
    return server.serve(parser().parse_args(argv), models_in_workers)


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:]), "serve"))
