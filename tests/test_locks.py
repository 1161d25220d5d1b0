"""One process at a time: the second is told who the first is, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from musiccm import locks
from musiccm.errors import MusiccmError
from musiccm.locks import LOCK, hold, holder, locked_folder, reserve_version
from tests.test_files import begin, refuse  # noqa: F401

HOLDER = """
import os, sys, pathlib
from musiccm.locks import locked_folder

with locked_folder(pathlib.Path(sys.argv[1])):
    if "fork" in sys.argv:  # a worker that outlives its parent, which goes on once the worker is itself
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            os.write(writing, b"x")
            sys.stdin.read()
            os._exit(0)
        os.read(reading, 1)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_is_told_who_the_first_is(tmp_path: Path, begin) -> None:  # noqa: F811
    first = begin(HOLDER, tmp_path / "cache", "--flag")
    with pytest.raises(MusiccmError) as refused, locked_folder(tmp_path / "cache"):
        pass
    for part in (str(tmp_path / "cache"), f"process {first.pid} on {socket.gethostname()}", "--flag", "since 20",
                 "wait until that has ended"):
        assert part in str(refused.value)
    assert (tmp_path / "cache" / LOCK).exists(), "a refused process removes nothing"
    first.communicate("", timeout=60)
    assert not (tmp_path / "cache").exists(), "it was made for nothing"


@pytest.mark.parametrize("more", [[], ["fork"]], ids=["alone", "with a worker that lives on"])
def test_a_killed_process_holds_nothing(tmp_path: Path, begin, more: list[str]) -> None:  # noqa: F811
    first = begin(HOLDER, tmp_path, *more)
    assert f"process {first.pid}" in str(holder(tmp_path / LOCK))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / LOCK).exists() and holder(tmp_path / LOCK) is None
    with locked_folder(tmp_path):
        assert f"process {os.getpid()}" in str(holder(tmp_path / LOCK))
    assert list(tmp_path.iterdir()) == []


def test_of_many_at_once_one_at_a_time_is_inside(tmp_path: Path) -> None:
    inside: list[int] = []
    entered = []

    def enter(number: int) -> None:
        for _ in range(30):
            try:
                with locked_folder(tmp_path):
                    inside.append(number)
                    entered.append(len(inside))
                    inside.remove(number)
            except MusiccmError:
                continue

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(6)))
    assert set(entered) == {1} and list(tmp_path.iterdir()) == []


def test_a_lock_file_that_says_nothing_is_a_lock_all_the_same(tmp_path: Path) -> None:
    lock = hold(tmp_path / LOCK, tmp_path)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(MusiccmError, match="in use by another process"):
        hold(tmp_path / LOCK, tmp_path)
    lock.release()
    lock.release()
    (tmp_path / LOCK).write_text("left by a machine that lost its power")
    hold(tmp_path / LOCK, tmp_path).release()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(MusiccmError, match="could not be locked"):
        hold(tmp_path / LOCK, tmp_path)


def test_without_locks_a_warning_says_so(tmp_path: Path, monkeypatch, caplog) -> None:
    for broken in (None, type("NoFlock", (), {"LOCK_EX": 2, "LOCK_SH": 1, "LOCK_NB": 4, "flock": refuse})):
        monkeypatch.setattr(locks, "fcntl", broken)
        caplog.clear()
        with locked_folder(tmp_path), locked_folder(tmp_path):
            assert "has no locks" in caplog.text and holder(tmp_path / LOCK) is None
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MusiccmError, match=f"{folder}: could not be written"), locked_folder(folder):
            pass


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: reserve_version(runs), range(100)))
    assert sorted(made) == sorted(runs / f"version_{number}" for number in range(100))
    (runs / "version_500").mkdir()
    (runs / "version_9000.bak").mkdir()
    assert reserve_version(runs) == runs / "version_501", "as Lightning counts: one more than the highest"
    (tmp_path / "file").write_text("")
    with pytest.raises(MusiccmError, match="could not be written"):
        reserve_version(tmp_path / "file")
