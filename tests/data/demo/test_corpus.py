"""The written corpus: the same bytes whatever the order and the workers, complete after an interruption, readable."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.demo import instruments
from musiccm.data.demo.corpus import write_corpus, write_track
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from tests.leftovers import leave_half_file

SEED = 5


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.suffix in (".flac", ".json")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "corpus"
    write_corpus(root, tracks=4, seed=SEED, test_tracks=2, workers=2, validation_tracks=2)
    return root


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def test_bytes_depend_on_seed_split_and_index_alone(corpus: Path, tmp_path: Path) -> None:
    for folder in ("train", "test", "validation", "label"):
        (tmp_path / folder).mkdir()
    for split, index in [("train", 3), ("validation", 1), ("train", 0)]:  # backwards, in one process, with gaps
        stem = write_track(tmp_path, SEED, split, index)
        assert stem == f"{split}_{index:06d}"
    found, expected = contents(tmp_path), contents(corpus)
    assert len(found) == 6 and found == {name: expected[name] for name in found}
    other = tmp_path / "other"
    for folder in ("train", "label"):
        (other / folder).mkdir(parents=True)
    write_track(other, SEED + 1, "train", 0)
    assert contents(other)["train/train_000000.flac"] != expected["train/train_000000.flac"]
    assert len({data for name, data in expected.items() if name.endswith(".flac")}) == 8


def test_a_tone_is_computed_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "_shared", None)
    tone, compute = instruments.tone.__wrapped__, instruments._computed_tone  # each call as of a process that is new
    computed: list[tuple[str, int, bool]] = []
    monkeypatch.setattr(instruments, "_computed_tone", lambda *which: computed.append(which) or compute(*which))
    alone = tone("bells", 60, True)
    instruments.share_tones(tmp_path)
    for other in (("bells", 60, True), ("bells", 60, False), ("bells", 61, True), ("organ", 60, True)):
        first, second = tone(*other), tone(*other)
        assert first.dtype == second.dtype == np.float32 and np.array_equal(first, second)
        assert np.array_equal(first, alone) == (other == ("bells", 60, True))
    assert len(computed) == 5 and len(list(tmp_path.iterdir())) == 4

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert np.array_equal(tone("bells", 62, True), compute("bells", 62, True)) and len(list(tmp_path.iterdir())) == 4


def test_an_interrupted_corpus_is_completed_to_the_same_bytes(corpus: Path, copy: Path) -> None:
    (copy / "train" / "train_000002.flac").unlink()  # killed between its label and its audio
    leave_half_file(copy / "train")
    (copy / "test" / "test_000001.flac").unlink()
    (copy / "label" / "test_000001.json").unlink()
    kept = (copy / "train" / "train_000000.flac").stat()
    write_corpus(copy, tracks=4, seed=SEED, test_tracks=2, workers=1, validation_tracks=2)
    assert contents(copy) == contents(corpus)
    assert not list(copy.rglob(".musiccm*"))
    now = (copy / "train" / "train_000000.flac").stat()
    assert (now.st_ino, now.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns), "a finished track was rendered again"


def test_another_seed_and_a_foreign_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    before = contents(copy)
    with pytest.raises(MusiccmError, match=r"corpus\.json.*'seed': 5.*'seed': 6"):
        write_corpus(copy, tracks=4, seed=SEED + 1)
    assert contents(copy) == before
    (copy / "corpus.json").write_text("{ half")
    with pytest.raises(MusiccmError, match=r"corpus\.json.*not a JSON file"):
        write_corpus(copy, tracks=4, seed=SEED)
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "my_only_recording.wav").write_bytes(b"precious")
    with pytest.raises(MusiccmError, match="not empty"):
        write_corpus(tmp_path / "mine", tracks=1)
    with pytest.raises(MusiccmError, match="--tracks"):
        write_corpus(tmp_path / "none", tracks=0)


def test_a_disk_that_takes_no_more_is_one_message_and_can_be_gone_on_from(corpus: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # a track is larger: the write fails half way
    try:
        with pytest.raises(MusiccmError, match=r"new.*could not be written: .*ulimit -f"):
            write_corpus(tmp_path / "new", tracks=1, seed=SEED, test_tracks=1, workers=1, validation_tracks=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "new").rglob("*.flac")), "a half file under a track's name"
    write_corpus(tmp_path / "new", tracks=1, seed=SEED, test_tracks=1, workers=1, validation_tracks=0)
    expected = contents(corpus)
    assert contents(tmp_path / "new") == {name: expected[name] for name in contents(tmp_path / "new")}
    (tmp_path / "file").write_text("")
    with pytest.raises(MusiccmError, match="file: the demo corpus could not be written: .*file is no folder"):
        write_corpus(tmp_path / "file", tracks=1)


def test_the_reader_of_real_corpora_reads_it(corpus: Path) -> None:
    for split, count in (("train", 4), ("test", 2), ("validation", 2)):
        clips, report = read_audiostock(corpus, split, max_bad_fraction=0.0)
        assert report.bad == [] and [clip.id for clip in clips] == [f"{split}_{n:06d}" for n in range(count)]
        for clip in clips:
            information = soundfile.info(clip.path)
            assert (information.samplerate, information.channels, information.frames) == (16000, 1, 163840)
            assert (information.format, information.subtype) == ("FLAC", "PCM_16")
            label = json.loads((corpus / "label" / f"{clip.id}.json").read_text())
            assert set(label) == {"text", "tag", "original_data"}
            assert clip.captions == label["text"] and len(clip.captions) >= 3
            assert clip.attributes == label["original_data"]["attributes"]
            assert {tuple(tag.split(": ")) for tag in clip.tags} == set(clip.attributes.items())
            assert 60 <= label["original_data"]["bpm"] <= 160
    data = MusicDataModule(str(corpus), batch_size=2, val_clips=1)
    batch = next(iter(data.test_dataloader()))
    assert batch.ids == ["test_000000", "test_000001"] and batch.waveform_BS.shape == (2, 81920)
    assert batch.waveform_BS.abs().amax(dim=1).min() > 0.1
