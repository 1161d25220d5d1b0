"""Music made in another process than the engine's: what travels is a request and the sound that it makes."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musiccm.errors import MusiccmError
from musiccm.serving.at_work import ModelAtWork
from musiccm.serving.device_queue import DeviceQueue
from musiccm.serving.jobs import Job
from musiccm.serving.loading import ServedModel
from musiccm.serving.request import MusicRequest
from musiccm.serving.tasks import Made, perform

Wire = dict[str, Any]
"""Values that JSON holds."""
Ask = Callable[[Wire], Wire]
"""Sends what `Replica.make` takes to a replica, and gives its answer; raises `ReplicaGone`."""

MAX_TRIES = 3
"""Replicas that a job is given to before it fails: a request fixes its sound, so that another makes the same."""


class ReplicaGone(Exception):
    """A replica ended, or cannot be reached; another can be asked."""


class Replica:
    """Models that make what they are sent; several calls at once share a device as jobs of an engine do.

    Args:
        models: What it serves.
        exact: See `EngineSettings`.
        max_batch: See `EngineSettings`.
    """

    def __init__(self, models: Sequence[ServedModel], exact: bool | None = None, max_batch: int = 8) -> None:
        self._models = {served.name: served.model for served in models}
        self._queues = {
            str(device): DeviceQueue(device.type == "cpu" if exact is None else exact, max_batch)
            for device in {model.device for model in self._models.values()}}

    def make(self, asked: Wire) -> Wire:
        """Make what was asked for.

        Args:
            asked: `request`, and the bytes of `source` in base64.

        Returns:
            The sound as plain values, or the message of what cannot be made.
        """
        request = MusicRequest.from_json(asked["request"], "the request")
        model = self._models[request.model]
        queue = self._queues[str(model.device)]
        job = Job("elsewhere", "", 0, request, 0, 0.0)
        queue.at_work(1)
        try:
            with tempfile.TemporaryDirectory() as folder:
                source = None
                if asked["source"] is not None:
                    source = Path(folder) / "source"
                    source.write_bytes(base64.b64decode(asked["source"]))
                made = perform(ModelAtWork(model, queue, job), request, source)
        except MusiccmError as error:
            return {"refused": str(error)}
        finally:
            queue.at_work(-1)
        samples_CS = made.waveform_CS.numpy()
        return {"samples": base64.b64encode(samples_CS.tobytes()).decode(), "shape": list(samples_CS.shape),
                "kind": str(samples_CS.dtype), "sample_rate_hz": made.sample_rate_hz, "form": made.form,
                "facts": made.facts, "device_s": job.device_s, "calls": job.calls}

    def close(self) -> None:
        """End its threads."""
        for queue in self._queues.values():
            queue.close()


def elsewhere(ask: Ask) -> Callable[[Job, Path | None], Made]:
    """What lets an engine make its jobs by replicas.

    Args:
        ask: Asks a replica, another one where one has gone.

    Returns:
        For `Engine(elsewhere=...)`.
    """

    def make(job: Job, source: Path | None) -> Made:
        asked = {"request": job.request.to_json(),
                 "source": None if source is None else base64.b64encode(source.read_bytes()).decode()}
        for _ in range(MAX_TRIES - 1):
            job.check()
            with contextlib.suppress(ReplicaGone):
                return _received(ask(asked), job)
        try:
            return _received(ask(asked), job)
        except ReplicaGone as error:
            raise MusiccmError(f"{MAX_TRIES} replicas ended while they made this ({error}); try again later") from error

    return make


def _received(answer: Wire, job: Job) -> Made:
    if "refused" in answer:
        raise MusiccmError(answer["refused"])
    samples = np.frombuffer(base64.b64decode(answer["samples"]), answer["kind"]).reshape(answer["shape"])
    job.calls, job.device_s = answer["calls"], answer["device_s"]
    return Made(torch.from_numpy(samples.copy()), answer["sample_rate_hz"], answer["form"], answer["facts"])
