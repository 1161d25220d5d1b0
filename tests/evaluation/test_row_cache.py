"""Rows are found again under the same key only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import musiccm
from musiccm.evaluation import row_cache
from musiccm.evaluation.row_cache import RowCache


def test_a_row_is_found_under_its_key_alone(tmp_path: Path) -> None:
    cache = RowCache(tmp_path)
    key = {"bundle": "abc", "steps": 50, "guidance_scale": 3.0}
    assert cache.get(key) is None
    cache.put(key, {"row": {"fd_tagger": 1.5}, "nearest": []})
    assert RowCache(tmp_path).get(dict(reversed(key.items()))) == {"row": {"fd_tagger": 1.5}, "nearest": []}
    for other in ({**key, "steps": 8}, {**key, "bundle": "abd"}, {**key, "extra": None}):
        assert cache.get(other) is None


def test_changed_code_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RowCache(tmp_path)
    cache.put({"steps": 1}, {"row": {}})
    monkeypatch.setattr(row_cache, "source_digest", lambda: "other code")
    assert cache.get({"steps": 1}) is None


@pytest.mark.parametrize("changed", ["samplers/few_step.py", "evaluation/candidates.py"])
def test_the_digest_is_of_the_code_that_makes_samples(tmp_path: Path, changed: str) -> None:
    copied = tmp_path / "musiccm"
    shutil.copytree(Path(musiccm.__file__).parent, copied, ignore=shutil.ignore_patterns("bundles", "__pycache__"))
    before = row_cache.source_digest(copied)
    assert before == row_cache.source_digest()
    (copied / "commands" / "pack.py").write_text("# not of the samples")
    row_cache.source_digest.cache_clear()
    assert row_cache.source_digest(copied) == before
    with (copied / changed).open("a") as file:
        file.write("\n# another line")
    row_cache.source_digest.cache_clear()
    assert row_cache.source_digest(copied) != before


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    cache = RowCache(tmp_path)
    cache.put({"steps": 1}, {"row": {}})
    (entry,) = tmp_path.iterdir()
    entry.write_text('{"key": {"st')
    assert cache.get({"steps": 1}) is None


def test_without_a_folder_nothing_is_kept() -> None:
    cache = RowCache(None)
    cache.put({"steps": 1}, {"row": {}})
    assert cache.get({"steps": 1}) is None
