"""Two replicas of Ray Serve on loopback, of which one is killed under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import build_random_student

from tests.deploy.fleet import Fleet, lose_a_replica_under_load

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    model = build_random_student(tmp_path / "bundles")
    begun = Fleet("ray_serve.py", model, tmp_path, lambda line: line.startswith("ray::ServeReplica:"), "--cores", "2")
    yield begun
    begun.end()


@pytest.mark.slow  # Ray and its replicas take a minute to begin
@pytest.mark.e2e
def test_a_replica_is_killed_under_load_and_nothing_is_lost_or_made_twice(fleet: Fleet) -> None:
    lose_a_replica_under_load(fleet, fleet.folder / "bundles/student")
