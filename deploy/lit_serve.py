"""musiccm behind LitServe: replicas that make music, and one server with queue, jobs and results in front of them.

python deploy/lit_serve.py replica --model musiccm-tiny-student --port 8001
python deploy/lit_serve.py server --model musiccm-tiny-student --replica http://127.0.0.1:8001 --port 8000
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import front
import httpx
import litserve

from musiccm.serving import load_model
from musiccm.serving.replica import Ask, Replica, ReplicaGone, Wire

TIMEOUT_S = 3600.0
"""Of the longest piece on the slowest device."""


class Music(litserve.LitAPI):
    """The models, in each of LitServe's workers, of which there is one a device.

    Args:
        models: See `load_model`.
    """

    def __init__(self, models: list[str]) -> None:
        super().__init__(api_path="/make")
        self._models = models

    def setup(self, device: str) -> None:
        """Read the models."""
        self._replica = Replica([load_model(named, device) for named in self._models])

    def decode_request(self, request: Wire) -> Wire:
        """A request travels as it is."""
        return request

    def predict(self, x: Wire) -> Wire:
        """Make what was asked for."""
        return self._replica.make(x)

    def encode_response(self, output: Wire) -> Wire:
        """An answer travels as it is."""
        return output


def asking(urls: list[str]) -> Ask:
    """What asks replicas in turn, for `elsewhere`.

    Args:
        urls: Where they are.

    Returns:
        It.
    """
    client, turns = httpx.Client(timeout=httpx.Timeout(TIMEOUT_S, connect=5.0)), itertools.count()

    def ask(asked: Wire) -> Wire:
        url = urls[next(turns) % len(urls)]
        try:
            answer = client.post(f"{url}/make", json=asked)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ReplicaGone(f"{url}: {type(error).__name__}") from error
        return answer.json()

    return ask


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds: Any = parser.add_subparsers(dest="kind", required=True)
    replica, server = (kinds.add_parser(name) for name in ("replica", "server"))
    for one in (replica, server):
        one.add_argument("--model", action="append", required=True, help="see `musiccm serve`; may be repeated")
    replica.add_argument("--port", type=int, default=8001)
    replica.add_argument("--host", default="127.0.0.1", help="an address that the server alone can reach")
    replica.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    server.add_argument("--replica", action="append", required=True, metavar="URL", help="may be repeated")
    front.add_options(server)
    args = parser.parse_args()
    if args.kind == "replica":
        litserve.LitServer(Music(args.model), accelerator=args.accelerator, timeout=TIMEOUT_S).run(
            host=args.host, port=args.port, num_api_servers=1, generate_client_file=False)
    else:
        front.run(args, args.model, 2 * len(args.replica), asking(args.replica))


if __name__ == "__main__":
    main()
