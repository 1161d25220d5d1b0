"""What SIM_AA is compared with: whose clips, which of them are the same, and what is missing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_bundle import build_random_bundle

from musiccm.audio import AudioFacts, scan_audio
from musiccm.audio.windows import read_window
from musiccm.data.demo.corpus import write_track
from musiccm.errors import MusiccmError
from musiccm.evaluation.galleries import bundle_index, described, galleries_of, warn_of_training_clips
from musiccm.evaluation.suite import MetricSuite
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import TRAINING_INDEX
from musiccm.similarity.clap_windows import CLAP_PARTS
from musiccm.similarity.index_writer import PlannedClip, write_index

EYE = torch.eye(32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose teacher was trained on t0 (two windows) and t1; t1 is a clip of the experiment too."""
    folder = build_random_bundle(tmp_path_factory.mktemp("bundle"), evaluators=False)
    made = Bundle.from_pretrained(folder)
    key = {"clap": made.content_hash(CLAP_PARTS), "sample_rate_hz": 1, "window_samples": 1, "hop_samples": 1}
    clips = [PlannedClip("t0", "t0.flac", [0.0, 1.0], "hash of t0"), PlannedClip("t1", "t1.flac", [0.0], "hash of a/1")]
    write_index(folder / TRAINING_INDEX, key, {}, clips, 32, lambda first, last: EYE[[0, 1, 2]][
        [0, 2][first] : [0, 2, 3][last]], dtype=torch.float16)
    return made


def data(names: tuple[str, ...] = ("a", "b")) -> Any:
    """Two corpora with a clip of two windows, and one; a/1 has another window than the index has of it."""
    ids = ["a/0", "a/0", "a/1", "b/0"]
    clips = [SimpleNamespace(id=clip_id, audio=AudioFacts(1, 1, 1, 0.0, 1.0, f"hash of {clip_id}"))
             for clip_id in dict.fromkeys(ids)]
    return SimpleNamespace(train_clap_audio=lambda: (ids, EYE[[3, 4, 5, 6]]), train_clips=clips,
                           corpora=SimpleNamespace(specs=[SimpleNamespace(name=name) for name in names]))


def test_everything_is_the_experiments_clips_and_the_teachers_each_once(bundle: Bundle) -> None:
    found = galleries_of(data(), bundle)
    assert found is not None
    gallery, about = found.by_column[""], found.about["sim_aa"]
    assert list(gallery.ids) == ["a/0", "a/1", "b/0", "teacher/t0"]
    assert gallery.first_row.tolist() == [0, 2, 4, 5, 7]
    torch.testing.assert_close(gallery.read(0, 7), EYE[[3, 4, 5, 2, 6, 0, 1]])  # a/1 has the window of both
    assert about == {"gallery": "all", "clips": 4, "windows": 7, "experiment": 3, "teacher": 2, "both": 1,
                     "lacks": None}
    assert list(described(found.about)) == [
        "sim_aa: 4 training clips, 7 windows: 3 of the experiment, 2 of its teacher, 1 of them the same"]
    assert found.own_ND is not None and len(found.own_ND) == 4


def test_a_column_each_and_only_the_first_is_without_a_name(bundle: Bundle) -> None:
    found = galleries_of(data(), bundle, ["b", "a", "teacher"])
    assert found is not None
    assert {column: list(gallery.ids) for column, gallery in found.by_column.items()} == {
        "": ["b/0"], "_a": ["a/0", "a/1"], "_teacher": ["teacher/t0", "teacher/t1"]}
    assert list(described(found.about))[0] == ("sim_aa: 1 training clips, 1 windows, of b; not compared with every "
                                               "other clip that teacher or student were trained on")
    suite = MetricSuite({}, found.by_column, text=False)
    from musiccm.evaluation.feature_extraction import Features

    suite.update_reference(Features({}, EYE[[6]]), None, ["r"])
    suite.update(Features({}, EYE[[0, 3, 6, 7]]), None, list("wxyz"))
    row, nearest = suite.compute()
    assert {key: value for key, value in row.items() if key.startswith("sim_aa_90")} == {
        "sim_aa_90": 0.25, "sim_aa_90_a": 0.25, "sim_aa_90_teacher": 0.25}
    assert nearest[0] == {"clip_id": "y", "nearest_id": "b/0", "cosine": 1.0, "nearest_start_s": None}
    references = suite.references()
    assert (references["test_set_sim_aa_90"], references["test_set_sim_aa_90_a"]) == (1.0, 0.0)
    for names in ([], ["a", "a"], ["c"]):
        with pytest.raises(MusiccmError, match="evaluation.galleries: expected different names among"):
            galleries_of(data(), bundle, names)


def test_a_bundle_without_an_index_is_compared_with_the_experiments_clips_and_says_so(tmp_path: Path) -> None:
    plain = Bundle.from_pretrained(build_random_bundle(tmp_path / "plain", evaluators=False))
    found = galleries_of(data(), plain)
    assert found is not None and found.by_column[""].n_clips == 3 and not found.teacher_samples
    (sentence,) = described(found.about)
    assert sentence.endswith(f"not compared with what the teacher was trained on beside this experiment's clips: "
                             f"{tmp_path / 'plain'} brings no training_index/")
    with pytest.raises(MusiccmError, match="teacher needs a bundle with training_index/"):
        galleries_of(data(), plain, ["teacher"])
    assert galleries_of(SimpleNamespace(), plain) is None


def test_an_index_of_another_clap_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = build_random_bundle(tmp_path / "other", seed=1, evaluators=False)
    (other / TRAINING_INDEX).symlink_to(bundle.path / TRAINING_INDEX)
    with pytest.raises(MusiccmError, match="built with another CLAP"):
        bundle_index(Bundle.from_pretrained(other))


def test_clips_that_the_teacher_was_trained_on_are_counted_by_their_samples(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    found = galleries_of(data(), bundle)
    with caplog.at_level(logging.WARNING):
        assert warn_of_training_clips(found, data().train_clips, "validation") == 1
        assert "trained on 1 of the 3 validation clips" in caplog.text
        caplog.clear()
        assert warn_of_training_clips(found, data().train_clips[2:], "validation") == 0 and not caplog.text


def test_the_embedded_teachers_index_covers_its_training_and_nothing_that_the_demo_validates_on(tmp_path: Path) -> None:
    """The demo's tracks, rendered: those of train/ are in the index, window by window; the others are not."""
    bundle = Bundle.from_pretrained("musiccm-tiny")
    index = bundle_index(bundle)
    student = bundle_index(Bundle.from_pretrained("musiccm-tiny-student"))
    assert index is not None and student is not None and student.digest == index.digest
    assert (index.n_clips, index.n_rows, index.about["held_out_clips"]) == (5744, 11488, 256)
    assert index.about["corpora"] == {"audiostock": {"composer_version": 1, "seed": 0}}
    assert sum(file.stat().st_size for file in index.folder.iterdir()) < 4e6
    assert {clip_id.split("_")[0] for clip_id in index.ids} == {"train"} and len(set(index.samples)) == 5744
    assert set(json.loads((index.folder / "index.json").read_text())["about"]) >= {"clips", "windows", "bundle"}
    for split in ("train", "validation", "test", "label"):
        (tmp_path / split).mkdir()
    known = {samples: number for number, samples in enumerate(index.samples)}
    for split, count in {"train": 3, "validation": 4, "test": 2}.items():
        for n in range(count):
            path = tmp_path / split / f"{write_track(tmp_path, 0, split, n)}.flac"
            facts = scan_audio(path)
            assert (facts.digest in known) == (path.stem in index.ids) == (split == "train"), path
            if split == "train" and n == 1:
                number = known[facts.digest]
                first = int(index.first_row[number])
                assert index.ids[number] == path.stem and [index.start_s(first + w) for w in (0, 1)] == [0.0, 5.12]
                heard = torch.stack([read_window(path, facts, 81920, 16000, start) for start in (0, 81920)])
                rows = bundle.conditioner().audio(heard, 16000)
                torch.testing.assert_close(index.read(first, first + 2), rows, atol=2e-3, rtol=0)
