"""Two workers of LitServe on loopback, of which one is killed under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import build_random_student

from tests.deploy.fleet import Fleet, lose_a_replica_under_load

pytest.importorskip("litserve", reason="LitServe is not installed")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    model = build_random_student(tmp_path / "bundles")
    begun = Fleet("litserve.py", model, tmp_path, lambda line: "spawn_main" in line)
    yield begun
    begun.end()


@pytest.mark.slow  # processes that each import for ten seconds begin one behind the other
@pytest.mark.e2e
def test_a_worker_is_killed_under_load_and_nothing_is_lost_or_made_twice(fleet: Fleet) -> None:
    lose_a_replica_under_load(fleet, fleet.folder / "bundles/student")
