"""Files written whole or not at all; what killed writers left goes, what living ones write and others own stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musiccm import files, locks
from musiccm.errors import MusiccmError
from musiccm.files import replacing_folder, sweep, sweep_below, write_atomically, write_text
from tests.leftovers import leave_half_file

# Writes half of a file and waits there.
WRITER = """
import sys, pathlib
from musiccm.files import write_atomically

def write(path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()

write_atomically(pathlib.Path(sys.argv[1]), write)
"""


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process; returns once it has printed a line. None outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, start_new_session=True)
        running.append(process)
        assert process.stdout is not None and process.stdout.readline()
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".musiccm")]


def test_what_a_killed_writer_leaves_is_removed_and_a_living_one_is_let_be(tmp_path: Path, begin) -> None:
    killed, living = begin(WRITER, tmp_path / "a.ckpt"), begin(WRITER, tmp_path / "b.ckpt")
    assert len(temporaries(tmp_path)) == 2 and len(list(tmp_path.iterdir())) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    sweep_below(tmp_path.parent)
    (left,) = temporaries(tmp_path)
    assert (tmp_path / left / "new").read_bytes() == b"half"
    living.communicate("", timeout=60)
    assert living.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b.ckpt"]


def test_the_first_write_into_a_folder_removes_what_was_left_there(tmp_path: Path) -> None:
    for number in range(3):
        leave_half_file(tmp_path, number)
    leave_half_file(tmp_path / "deeper")
    write_text(tmp_path / "x.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "x.json"]
    assert temporaries(tmp_path / "deeper"), "another folder"


def test_nothing_that_only_looks_alike_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".musiccm-0000000000000000.tmp").write_text("a file")
    foreign = tmp_path / ".musiccm-0000000000000001.tmp"
    foreign.mkdir()
    (foreign / "song.wav").write_text("no lock file of ours")
    elsewhere = leave_half_file(tmp_path / "elsewhere")
    (tmp_path / ".musiccm-0000000000000002.tmp").symlink_to(elsewhere)
    leave_half_file(tmp_path, 3).rename(tmp_path / ".musiccm-0000000000000003.tmp.bak")
    leave_half_file(tmp_path, 4).rename(tmp_path / "musiccm-0000000000000004.tmp")
    linked = leave_half_file(tmp_path, 5)
    (linked / locks.LOCK).unlink()
    (linked / locks.LOCK).symlink_to(tmp_path / "target")
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and elsewhere.is_dir()
    assert sweep(tmp_path / "none") is None  # type: ignore[func-returns-value]


def test_a_folder_where_the_kill_came_before_the_lock_goes_too(tmp_path: Path) -> None:
    (tmp_path / ".musiccm-00000000000000aa.tmp").mkdir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_puts_its_own_file_in_place_is_safe_from_the_sweep(tmp_path: Path) -> None:
    """safetensors writes another file and renames it: a lock on the file itself would be gone."""

    def write(path: Path) -> None:
        save_file({"a": torch.ones(3)}, path)
        sweep(tmp_path)
        save_file({"a": torch.ones(4)}, path)
        sweep(tmp_path)

    write_atomically(tmp_path / "x.safetensors", write)
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [1.0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_writers_and_sweepers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        write_text(tmp_path / f"{number}.txt", str(number) * 1000)
        sweep(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(160)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"{number}.txt": str(number) * 1000 for number in range(160)}


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "é" * 125 + ".json"])
def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "whole")
    with replacing_folder(tmp_path / "folders" / name) as staging:
        staging.mkdir()
        (staging / "part").write_text("whole")
    assert (tmp_path / name).read_text() == (tmp_path / "folders" / name / "part").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2 and len(list((tmp_path / "folders").iterdir())) == 1


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path: Path, monkeypatch) -> None:
    left = leave_half_file(tmp_path)
    for broken in (None, type("NoFlock", (), {"LOCK_EX": 2, "LOCK_SH": 1, "LOCK_NB": 4, "flock": refuse})):
        monkeypatch.setattr(locks, "fcntl", broken)
        write_text(tmp_path / "x.txt", "whole")
        sweep(tmp_path)
        assert left.is_dir() and len(list(tmp_path.iterdir())) == 2


def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    with pytest.raises(ZeroDivisionError), replacing_folder(target) as staging:
        staging.mkdir()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == [], "the folder above was made for nothing"
    for content in ("first", "second"):
        with replacing_folder(target) as staging:
            staging.mkdir()
            (staging / content).write_text(content)
            with pytest.raises(MusiccmError, match=r"bundle: in use by `.*` \(process \d+ on .*; wait until"):
                replacing_folder(target).__enter__()
        assert [path.name for path in target.iterdir()] == [content]
        assert [path.name for path in target.parent.iterdir()] == ["bundle"]


def test_a_folder_that_cannot_be_put_in_place_gives_the_old_one_back(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "precious").write_text("")
    with pytest.raises(MusiccmError, match="old: could not be written"), replacing_folder(tmp_path / "old"):
        pass  # nothing was made
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["precious"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_is_renamed_was_confirmed_by_the_disk(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    for name in ("fsync", "replace"):
        own = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, own=own, name=name: (events.append(name), own(*a)))
    write_text(tmp_path / "x", "whole")
    assert events == ["fsync", "replace"]
