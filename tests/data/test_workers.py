"""How many processes read, by what the machine has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from musiccm.data import workers
from musiccm.data.workers import default_workers


@pytest.mark.parametrize(("cores", "processes", "free", "expected"), [
    (16, 1, 1 << 34, 15), (16, 4, 1 << 34, 3), (64, 1, 1 << 34, 16), (1, 1, 1 << 34, 0), (16, 1, 1 << 26, 3),
    (16, 1, 1 << 20, 0)])
def test_readers_by_cores_and_by_shared_memory(
    cores: int, processes: int, free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    # 16 windows of 5.12 s: 5.2 MB, two of which each reader holds ready in half of what is free
    assert default_workers(processes, 16 * 81920 * 4) == expected
    monkeypatch.setattr(workers.multiprocessing, "get_all_start_methods", lambda: ["spawn", "fork"])
    assert default_workers(processes, 16 * 81920 * 4) == 0
