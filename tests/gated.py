"""A served pipeline whose network calls can be held up and counted."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from torch import Tensor

from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, MusicRequest, ServedModel

TEXTS = ["a calm piano melody", "slow organ chords", "a fast marimba tune with steady drums"]


def asked(text: str = TEXTS[0], **fields: Any) -> MusicRequest:
    return MusicRequest("student", ((0.0, text),), **{"seed": 3, **fields})


class Gate:
    """A network that waits before its first call, so that jobs gather; and counts its calls."""

    def __init__(self, network: Any) -> None:
        self.network, self.open, self.rows = network, threading.Event(), []
        self.called, self.begun = threading.Event(), 0

    def __call__(self, z: Tensor, t: Tensor, cond: Any, *more: Tensor) -> Tensor:
        self.begun += 1
        self.called.set()
        assert self.open.wait(30)
        self.rows.append(len(z))
        return self.network(z, t, cond, *more)


class Gated:
    """A pipeline whose network is replaced; all else is the pipeline's own."""

    def __init__(self, pipeline: Pipeline, network: Any = None) -> None:
        self._pipeline = pipeline
        self.network = network or Gate(pipeline.consistency)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def stepper(self, *args: Any, **options: Any) -> Any:
        return dataclasses.replace(self._pipeline.stepper(*args, **options), network=self.network)


def gather(make_engine: Any, gated: Gated, **settings: Any) -> Engine:
    """An engine whose next network call waits for the gate; its first sound is made already."""
    gated.network.open.set()
    engine = make_engine(models=[ServedModel.of("student", gated)], **settings)
    gated.network.open.clear()
    gated.network.called.clear()
    gated.network.rows.clear()
    return engine
