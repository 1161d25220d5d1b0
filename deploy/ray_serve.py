"""serve models by replicas of Ray Serve, on one machine or many (docs/deployment.md)."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from musiccm import signals
from musiccm.cli import run
from musiccm.commands import serve as server
from musiccm.errors import MusiccmError
from musiccm.serving import load_model
from musiccm.serving.elsewhere import load_elsewhere
from musiccm.serving.replica import Replica, ReplicaLost

NAME = "musiccm"
_LOST = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError,
         ReplicaUnavailableError, DeploymentUnavailableError)


class RayReplica:
    """A replica as an actor of Ray's, which has its share of a machine's GPUs and cores.

    Args:
        models: What `--model` names.
        options: The next arguments of `load_model`.
        packages: What `--compiled` names, by model.
    """

    def __init__(self, models: list[str], options: tuple[Any, ...], packages: dict[str, Path]) -> None:
        self._replica = Replica([load_model(one, *options, compiled=packages.get(one)) for one in models])

    def answer(self, question: bytes) -> bytes:
        """See `Replica.answer`."""
        return self._replica.answer(question)


class Replicas:
    """The deployment, begun when the first question is asked.

    Args:
        args: The options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self._beginning, self._packages = args, threading.Lock(), server.packages(args)

    @cached_property
    def _handle(self) -> Any:
        args = self._args
        handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
        ray.init(address=args.address or "local", namespace=NAME, include_dashboard=False, log_to_driver=False,
                 logging_level="warning", **({} if args.address else {"num_cpus": args.cores}))
        for number, handler in handlers.items():  # Ray has put its own in their place, which end the process at once
            signal.signal(number, handler)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")  # the only way in is this process
        several = ({"num_replicas": args.replicas} if args.max_replicas is None else {"autoscaling_config": {
            "min_replicas": args.replicas, "max_replicas": args.max_replicas, "target_ongoing_requests": args.ongoing,
        }})
        deployment = serve.deployment(
            RayReplica, name=NAME, max_ongoing_requests=args.ongoing,
            ray_actor_options={"num_gpus": args.gpus, "num_cpus": args.cpus}, **several)
        device = args.device if args.device != "auto" else "cuda" if args.gpus else "cpu"
        models = args.model or [server.DEFAULT_MODEL]
        options = (device, args.decoder, args.half, args.compile)
        return serve.run(deployment.bind(models, options, self._packages), name=NAME, route_prefix=None)

    def ask(self, question: bytes) -> bytes:
        """See `Ask`; Ray chooses the replica, and begins another where one has ended."""
        with self._beginning:
            handle = self._handle
        try:
            return handle.answer.remote(question).result()
        except _LOST as error:
            raise ReplicaLost(type(error).__name__) from error

    def close(self) -> None:
        """End the replicas, and Ray if it was begun here."""
        if not ray.is_initialized():
            return
        if self._args.address:  # others may serve there, too
            serve.delete(NAME)
        else:
            serve.shutdown()
        ray.shutdown()


@contextmanager
def models_in_ray(args: argparse.Namespace) -> Iterator[server.Load]:
    """Models whose networks compute in Ray's replicas.

    Args:
        args: The options.

    Yields:
        What loads one.

    Raises:
        MusiccmError: The options contradict each other.
    """
    most = args.max_replicas or args.replicas
    if most < args.replicas:
        raise MusiccmError(f"--max-replicas {most}: expected at least --replicas, {args.replicas}")
    args.lanes = most * args.ongoing
    args.running = max(args.running, 2 * args.lanes)
    args.together |= args.gpus > 0
    replicas = Replicas(args)
    try:
        yield lambda one: load_elsewhere(one, replicas.ask, args.decoder, args.half)
    finally:
        replicas.close()


def parser() -> argparse.ArgumentParser:
    """The options: those of `musiccm serve`, and how many replicas there are."""
    made = server.make_parser("deploy/ray_serve.py", __doc__)
    more = made.add_argument_group("replicas")
    more.add_argument("--replicas", type=server.whole(1, 4096), default=2, help="(default %(default)s)")
    more.add_argument("--max-replicas", type=server.whole(1, 4096), metavar="N",
                      help="begin up to so many as there is work for them, and end them again (default: as --replicas)")
    more.add_argument("--ongoing", type=server.whole(1, 64), default=1, metavar="N",
                      help="questions that a replica is given at once; 2 keeps a GPU busy while one is on its way "
                           "(default %(default)s)")
    more.add_argument("--gpus", type=float, default=0.0, metavar="N",
                      help="of a replica; parts of one too. Network calls of several jobs are then made as one, see "
                           "--together (default %(default)g)")
    more.add_argument("--cpus", type=float, default=1.0, metavar="N", help="of a replica (default %(default)g)")
    more.add_argument("--address", help="of a cluster of Ray's that runs, or auto (default: one is begun here)")
    more.add_argument("--cores", type=server.whole(1, 4096), metavar="N",
                      help="that a cluster begun here may count on (default: those of the machine)")
    return made


def main(argv: list[str]) -> int:
    """Serve until a signal comes."""
    return server.serve(parser().parse_args(argv), models_in_ray)


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:]), "serve"))
