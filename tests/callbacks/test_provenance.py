import shutil
import subprocess

import pytest
import torch

from musiccm import __version__
from musiccm.callbacks.provenance import git_hash, provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@needs_git
def test_hash_is_the_commit_and_says_when_files_differ(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_hash(tmp_path) == head
    (tmp_path / "run.log").write_text("untracked files do not count")
    assert git_hash(tmp_path) == head
    (tmp_path / "a.py").write_text("2")
    assert git_hash(tmp_path) == head + "-dirty"
    installed = tmp_path / "venv/site-packages/musiccm"
    installed.mkdir(parents=True)
    (installed / "b.py").write_text("3")
    assert git_hash(installed) is None, "the surrounding repository is not where an installed copy comes from"


def test_no_hash_outside_git_or_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_hash(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_hash() is None
    assert provenance()["git"] == "unknown"


def test_versions():
    found = provenance()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found.get("musiccm", __version__) == __version__
