"""One small student, served: models are loaded once a file, engines are cheap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_bundle import build_random_student

from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, EngineSettings, ServedModel


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(build_random_student(tmp_path_factory.mktemp("bundles"))).accelerate()


@pytest.fixture(scope="module")
def served(pipeline: Pipeline) -> ServedModel:
    return ServedModel.of("student", pipeline)


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(served: ServedModel, tmp_path: Path) -> Iterator[MakeEngine]:
    """Engines on one folder; started unless told otherwise, and closed in the end."""
    made: list[Engine] = []

    def make(start: bool = True, models: list[ServedModel] | None = None, **settings: object) -> Engine:
        engine = Engine(models or [served], tmp_path / "engine", EngineSettings(**settings))
        made.append(engine)
        return engine.start() if start else engine

    yield make
    for engine in made:
        engine.close()
