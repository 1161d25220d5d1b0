"""musiccm behind Ray Serve: one server with queue, jobs and results, and replicas of the models that make them.

python deploy/ray_serve.py --model musiccm-tiny-student --replicas 2 --max-replicas 8 --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import front
import ray
from ray import serve
from ray.exceptions import RayActorError

from musiccm.serving import load_model
from musiccm.serving.replica import Ask, Replica, ReplicaGone, Wire


@serve.deployment
class Music:
    """A replica: the models, whose calls are made together where several are at work."""

    def __init__(self, models: list[str], device: str) -> None:
        self._replica = Replica([load_model(named, device) for named in models])

    async def __call__(self, asked: Wire) -> Wire:
        """Make what was asked for, beside others."""
        return await asyncio.to_thread(self._replica.make, asked)


def deployed(models: list[str], device: str = "cpu", least: int = 1, most: int = 1, each: int = 4) -> Ask:
    """Begin replicas.

    Args:
        models: See `load_model`.
        device: Where each computes; with cuda, each has a GPU of its own.
        least: Replicas at any time.
        most: Replicas under load.
        each: Jobs at work at once in each.

    Returns:
        What asks one of them, for `elsewhere`.
    """
    scaling = {"min_replicas": least, "initial_replicas": least, "max_replicas": most, "target_ongoing_requests": each}
    options: dict[str, Any] = {"autoscaling_config": scaling} if most > least else {"num_replicas": least}
    resources = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 0.5}
    # the engine's own queue is bounded and kept on disk, and gives no more than may be at work
    handle = serve.run(Music.options(**options, max_ongoing_requests=each, max_queued_requests=2 * most * each,
                                     ray_actor_options=resources).bind(models, device), route_prefix=None)

    def ask(asked: Wire) -> Wire:
        try:
            return handle.remote(asked).result()
        except RayActorError as error:
            raise ReplicaGone(type(error).__name__) from error

    return ask


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="see `musiccm serve`; may be repeated")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=0, help="under load (default: no more)")
    parser.add_argument("--each", type=int, default=4, help="jobs at work in a replica at once")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--address", help="of a Ray cluster; without, one is begun here")
    front.add_options(parser)
    args = parser.parse_args()
    most = max(args.replicas, args.max_replicas)
    ray.init(address=args.address, include_dashboard=False, log_to_driver=False)
    try:
        front.run(args, args.model, most * args.each,
                  deployed(args.model, args.device, args.replicas, most, args.each))
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
