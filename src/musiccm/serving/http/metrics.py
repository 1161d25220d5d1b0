"""What Prometheus reads: counts, times and the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from musiccm.serving.engine import EngineState

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics(Collector):
    """The metrics of one engine, in a registry of their own.

    Attributes:
        state: Asked for the engine's state whenever the metrics are read; set once there is an engine.
    """

    def __init__(self) -> None:
        self.state: Callable[[], EngineState] | None = None
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "musiccm"}
        self._submitted = Counter("jobs_submitted", "Jobs that were taken.", ["task"], **own)
        self._finished = Counter("jobs_finished", "Jobs that ended.", ["task", "state"], **own)
        self._rejected = Counter("rejected", "Requests for which there was no room.", ["reason"], **own)
        self._waited = Histogram("job_wait_seconds", "From the request until it is taken up.", buckets=_SECONDS, **own)
        self._ran = Histogram("job_run_seconds", "From there to the end.", ["task"], buckets=_SECONDS, **own)
        self._batch = Histogram("batch_calls", "Network calls of jobs that were made as one turn.",
                                buckets=(1, 2, 4, 8, 16, 32), **own)
        self._sound = Counter("sound_seconds", "Seconds of music that were made.", ["task"], **own)
        self._realtime = Histogram("realtime_factor", "Seconds of music a second of work.",
                                   buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 500), **own)
        self.registry.register(self)

    def told(self, kind: str, values: dict[str, Any]) -> None:
        """Take in what the engine says (`Engine.on_event`)."""
        if kind == "submitted":
            self._submitted.labels(values["task"]).inc()
        elif kind == "started":
            self._waited.observe(values["wait_s"])
        elif kind == "batch":
            self._batch.observe(values["calls"])
        elif kind == "rejected":
            self._rejected.labels(values["kind"]).inc()
        elif kind == "finished":
            self._finished.labels(values["task"], values["state"]).inc()
            if values["run_s"] is not None:
                self._ran.labels(values["task"]).observe(values["run_s"])
            if values["state"] == "done" and values["result"]:
                self._sound.labels(values["task"]).inc(values["result"]["seconds"])
                if values["run_s"]:
                    self._realtime.observe(values["result"]["seconds"] / values["run_s"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The engine's state, as it is when it is read."""
        if self.state is None:
            return
        state = self.state()
        for name, said, value in (
            ("queued", "Jobs that wait.", state.queued), ("running", "Jobs at work.", state.running),
            ("streams", "Streams that play.", state.streams),
            ("result_bytes", "Size of all results on disk.", state.result_bytes),
        ):
            yield GaugeMetricFamily(f"musiccm_{name}", said, value)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)
