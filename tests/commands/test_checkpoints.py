"""Checkpoint files: whole or not at all, whatever fails while they are written."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from musiccm.commands._checkpoints import CheckpointFiles
from musiccm.errors import MusiccmError


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["while it is written", "when the disk confirms", "when it is renamed"])
def test_a_write_that_fails_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path, files = tmp_path / "checkpoints" / "last.ckpt", CheckpointFiles()
    first = {"state_dict": {"a": torch.ones(3)}, "global_step": 1, "pytorch-lightning_version": "2.0"}
    files.save_checkpoint(first, path)
    before = path.read_bytes()
    said = "a file may not be that large" if fails == "while it is written" else "the disk is full; free space"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fails == "while it is written":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    elif fails == "when the disk confirms":
        monkeypatch.setattr("musiccm.files.os.fsync", full)
    else:
        monkeypatch.setattr("musiccm.files.os.replace", full)
    try:
        with pytest.raises(MusiccmError, match=rf"last.ckpt: could not be written: {said}"):
            files.save_checkpoint({"state_dict": {"a": torch.ones(100_000)}, "global_step": 2}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == before
    assert files.load_checkpoint(path)["global_step"] == 1


@pytest.mark.parametrize("key", ["state_dict", "pytorch-lightning_version"])
def test_a_file_of_weights_is_no_checkpoint_of_a_run(tmp_path: Path, key: str) -> None:
    content = {"state_dict": {"a": torch.ones(3)}, "pytorch-lightning_version": "2.0"}
    torch.save({name: value for name, value in content.items() if name != key}, tmp_path / "other.pt")
    with pytest.raises(MusiccmError, match=rf"other.pt: expected a checkpoint of a run, .* without a {key}"):
        CheckpointFiles().load_checkpoint(tmp_path / "other.pt")
