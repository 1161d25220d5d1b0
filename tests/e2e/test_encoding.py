"""`musiccm prepare latents` in several processes, one of them killed in the middle, resumed in another number of them:
the cache is that of an undisturbed process, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, World

pytestmark = pytest.mark.e2e

SHARD_SIZE = 4
# Kills its process as it is about to put a whole file in its place: half a file stays behind.
KILLER = """
import os, signal
replace, done = os.replace, []

def replace_or_die(source, target):
    if "/shard-" in str(target):
        done.append(target)
        if os.environ.get("KILL_RANK") == os.environ.get("RANK") and len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `musiccm` in several processes; none of them outlives the test."""
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    running: list[subprocess.Popen[str]] = []

    def begin(processes: int, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
        paths = [str(REPOSITORY / "src"), str(tmp_path / "killer"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "musiccm"]
        running.append(subprocess.Popen(
            [sys.executable, *launch, *arguments], cwd=tmp_path, env=environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*")
            if path.is_file() and path.name != "encoding.json"}


def test_any_number_of_processes_and_a_kill_give_the_same_cache(
    world: World, tmp_path: Path, start: Callable[..., Any], torchrun: Callable[..., Any]
) -> None:
    config = str(world.experiment(tmp_path, "encoded", []))
    command = ["prepare", "latents", "--config", config, "--shard-size", str(SHARD_SIZE), "--batch-size", "3"]
    alone = start([*command, "--cache-dir", "alone"], tmp_path)
    killed = torchrun(2, [*command, "--cache-dir", "cache"], KILL_RANK="1")
    printed, _ = killed.communicate(timeout=600)
    assert killed.returncode != 0 and "Signal 9" in printed, printed  # and it has ended: the other did not wait on
    left = contents(tmp_path / "cache")
    shards = [name for name in left if "/shard-" in name]
    assert 2 <= len(shards) < 10 and [name for name in left if "/.musiccm-" in name], "killed in the middle of a file"

    resumed = torchrun(3, [*command, "--cache-dir", "cache"])
    for process in (alone, resumed):
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
    assert "files are there already" in printed and "on 3 process(es)" in printed
    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "cache")
    assert found.keys() == expected.keys() and len([name for name in found if "train/shard-" in name]) == 10
    assert [name for name in found if found[name] != expected[name]] == []
    kept = [name for name in shards if left[name] == found[name]]
    assert kept == shards

    # What process 0 alone finds out ends the others, which wait for it.
    index = tmp_path / "cache" / "train" / "index.json"
    index.write_text(index.read_text().replace('"windows_per_track": 2', '"windows_per_track": 5'))
    refused = torchrun(2, [*command, "--cache-dir", "cache"])
    printed, _ = refused.communicate(timeout=600)
    assert refused.returncode != 0
    assert "holds latents of something else: windows_per_track is 5, expected 2" in printed
