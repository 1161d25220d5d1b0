"""The sound of scenes: what the labels say is played, when they say it; beats that a tracker finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musiccm.cli import main
from musiccm.data.demo.events.music import render
from musiccm.data.demo.events.tracks import make_event_track, other_event_rendering, scene_of
from musiccm.data.demo.events.world import Event, Scene, borders_s
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError

RATE_HZ = 16000
FLUTE, ROCK = Event("melody", "flute"), Event("drums", "rock")
SCENE = Scene("joins", (FLUTE, ROCK), 120, "middle", "major", 0, 0.1)


def played(scene: Scene) -> np.ndarray:
    return render(scene, np.random.default_rng(1))


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def test_what_joins_half_way_is_not_there_before_and_what_leaves_not_after() -> None:
    alone, joined = played(replace(SCENE, form="alone", events=(FLUTE,))), played(SCENE)
    left, together = played(replace(SCENE, form="leaves")), played(replace(SCENE, form="together"))
    # 120 bpm: the fifth beat behind the lead-in is the one nearest to the middle
    border = round((0.06 + 5 * 0.5) * RATE_HZ)
    assert borders_s(120, 2) == pytest.approx([0.06, border / RATE_HZ, 5.12])
    early, late = slice(0, border - 100), slice(border + 16000, None)
    assert alike(alone[early], joined[early]) > 0.999 > 0.9 > alike(alone[late], joined[late])
    assert alike(together[late], joined[late]) == pytest.approx(alike(together[late], joined[late]))
    assert alike(alone[late], left[late]) > 0.999 > 0.9 > alike(alone[early], left[early])
    assert alike(together[early], left[early]) > 0.99


def test_strokes_are_as_many_as_told_and_silence_follows() -> None:
    for count in (1, 2, 3, 4):
        scene = replace(SCENE, form="alone", events=(Event("strokes", "marimba", count),), bpm=100)
        wave, beat = played(scene), round(0.6 * RATE_HZ)
        starts = range(round(0.05 * RATE_HZ), len(wave) - beat, beat)
        peaks = [np.abs(wave[start: start + beat]).max() for start in starts]
        assert min(peaks[:count]) > 0.2 and max(peaks[count:]) < 0.1, (count, peaks)


def test_the_same_arguments_give_the_same_bytes_and_twins_sound_apart() -> None:
    pair = next(index for index in range(0, 40, 2) if scene_of(3, "test", index)[1] is not None)
    first, twin = (make_event_track(3, "test", index) for index in (pair, pair + 1))
    assert first.waveform_S.shape == (81920,) and first.waveform_S.dtype == np.float32
    assert np.abs(first.waveform_S).max() == pytest.approx(0.7, abs=1e-4)
    assert np.array_equal(first.waveform_S, make_event_track(3, "test", pair).waveform_S)
    assert abs(alike(first.waveform_S, twin.waveform_S)) < 0.9
    other = other_event_rendering(3, "test", pair, 1)
    assert abs(alike(first.waveform_S, other)) < 0.9
    assert np.array_equal(other, other_event_rendering(3, "test", pair, 1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("events") / "corpus"
    assert main(["prepare", "demo", "--world", "events", "--out", str(root), "--tracks", "4", "--test-tracks", "2",
                 "--validation-tracks", "2", "--seed", "3", "--workers", "1"]) == 0
    return root


def test_the_corpus_is_read_as_any_other(corpus: Path) -> None:
    assert json.loads((corpus / "corpus.json").read_text()) == {"seed": 3, "composer_version": 1, "world": "events"}
    track = make_event_track(3, "train", 1)
    label = json.loads((corpus / "label" / "train_000001.json").read_text())
    assert label["text"] == [sentence.text for sentence in track.sentences] and len(label["text"]) == 4
    assert label["original_data"]["attributes"] == track.scene.labels()
    sound, rate_hz = soundfile.read(corpus / "train" / "train_000001.flac", dtype="float32")
    assert rate_hz == RATE_HZ and np.abs(sound - track.waveform_S).max() < 1e-4
    data = MusicDataModule(str(corpus), batch_size=2)
    data.setup("test")
    assert [len(clips) for clips in (data.train_clips, data.val_clips, data.test_clips)] == [4, 2, 2]
    batch = next(iter(data.test_dataloader()))
    assert batch.captions == [make_event_track(3, "test", index).sentences[0].text for index in (0, 1)]
    others = data.other_renderings("test")
    expected = torch.from_numpy(other_event_rendering(3, "test", 1, 1))
    centred = expected - expected.mean()
    assert torch.allclose(others[1]["waveform_S"], 0.5 * centred / centred.abs().max(), atol=1e-5)
    assert others[1]["caption"] == batch.captions[1] and others.key["worlds"] == {"events": 1}


def test_a_folder_of_one_world_is_not_filled_with_another(corpus: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    assert main(["prepare", "demo", "--out", str(tmp_path / "copy"), "--tracks", "4", "--seed", "3"]) == 2
    assert "'world': 'events'" in capsys.readouterr().err
    command = ["prepare", "demo", "--out", str(tmp_path / "new"), "--world", "events", "--layout", "magnatagatune"]
    assert main(command) == 2
    assert "--world events" in capsys.readouterr().err


def test_an_experiment_says_which_world_its_demo_corpus_is_of(tmp_path: Path, monkeypatch, capsys) -> None:
    written = []

    def note(root, *counts, world, **more):
        written.append((root, world))

    monkeypatch.setattr("musiccm.data.demo.corpus.write_corpus", note)
    lines = "data:\n  init_args:\n    root: {0}\n    demo_corpora: [{0}]\n"
    (tmp_path / "x.yaml").write_text(lines.format(tmp_path / "c") + "    demo_world: events\n")
    (tmp_path / "y.yaml").write_text(lines.format(tmp_path / "d"))
    for name, command in (("x", "demo"), ("x", "corpus"), ("y", "corpus")):
        assert main(["prepare", command, "--config", str(tmp_path / f"{name}.yaml")]) == 0
    assert main(["prepare", "corpus", "--config", str(tmp_path / "x.yaml"), "--world", "music"]) == 0
    assert written == [(tmp_path / "c", "events"), (tmp_path / "c", "events"), (tmp_path / "d", "music"),
                       (tmp_path / "c", "music")]
    with pytest.raises(MusiccmError, match=r"data\.demo_world.*'noise'"):
        MusicDataModule(str(tmp_path), demo_world="noise")
    capsys.readouterr()


@pytest.mark.slow
def test_a_beat_tracker_finds_the_tempo() -> None:
    """librosa's, which knows nothing of how clips are made: within 6 %, octaves forgiven."""
    librosa = pytest.importorskip("librosa")
    near = []
    for index in range(120):
        scene = scene_of(0, "test", index)[0]
        if scene.has_tempo:
            strength = librosa.onset.onset_strength(y=other_event_rendering(0, "test", index, 0), sr=RATE_HZ,
                                                    hop_length=256, n_fft=1024)
            found = librosa.feature.tempo(onset_envelope=strength, sr=RATE_HZ, hop_length=256)[0]
            near.append(any(abs(found * factor / scene.bpm - 1) <= 0.06 for factor in (0.5, 1, 2)))
    assert len(near) > 90 and np.mean(near) >= 0.95
