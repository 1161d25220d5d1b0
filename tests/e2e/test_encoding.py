"""`musiccm prepare latents` in several processes, one of them killed in the middle, resumed in another number of them:
the cache is that of an undisturbed process, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import World

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


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*")
            if path.is_file() and path.name != "encoding.json"}


def test_any_number_of_processes_and_a_kill_give_the_same_cache(
    world: World, tmp_path: Path, start: Callable[..., Any], torchrun: Callable[..., Any],
    side_by_side: Callable[..., tuple[list[int], list[str]]],
) -> None:
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    config = str(world.experiment(tmp_path, "encoded", []))
    command = ["prepare", "latents", "--config", config, "--shard-size", str(SHARD_SIZE), "--batch-size", "3"]
    alone = start([*command, "--cache-dir", "alone"], tmp_path)
    killed = torchrun(2, [*command, "--cache-dir", "cache"], tmp_path, tmp_path / "killer", KILL_RANK="1")
    printed, _ = killed.communicate(timeout=300)
    assert killed.returncode != 0 and "Signal 9" in printed, printed  # and it has ended: the other did not wait on
    left = contents(tmp_path / "cache")
    shards = [name for name in left if "/shard-" in name]
    assert 2 <= len(shards) < 10 and [name for name in left if "/.musiccm-" in name], "killed in the middle of a file"

    codes, texts = side_by_side(3, [*command, "--cache-dir", "cache"], tmp_path)
    assert codes == [0, 0, 0], texts
    assert "files are there already" in texts[0] and "on 3 process(es)" in texts[0]
    printed, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, printed
    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "cache")
    assert found.keys() == expected.keys() and len([name for name in found if "train/shard-" in name]) == 10
    assert [name for name in found if found[name] != expected[name]] == []
    kept = [name for name in shards if left[name] == found[name]]
    assert kept == shards

    # What process 0 alone finds out ends the others, which wait for it.
    index = tmp_path / "cache" / "train" / "index.json"
    index.write_text(index.read_text().replace('"windows_per_track": 2', '"windows_per_track": 5'))
    codes, texts = side_by_side(2, [*command, "--cache-dir", "cache"], tmp_path)
    assert 0 not in codes, texts
    assert "holds latents of something else: windows_per_track is 5, expected 2" in "".join(texts)
