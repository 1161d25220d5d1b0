"""`musiccm.evaluate`: silent, of folders or files, each file decoded as seldom as can be."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import musiccm
from musiccm.audio import facts, io
from musiccm.data import audio_folder
from musiccm.embedders import load_embedder
from musiccm.evaluation.api import Scores
from musiccm.similarity.check import check_plagiarism
from musiccm.similarity.indexing import index_folder

N = 4


def write_clips(folder: Path, seed: int, rate_hz: int = 16000) -> Path:
    draw = np.random.default_rng(seed)
    folder.mkdir()
    for n in range(N):
        seconds = 1.3 + 0.2 * (n % 2)
        samples = 0.1 * draw.standard_normal((round(seconds * rate_hz), 2)).cumsum(axis=0).clip(-5, 5)
        soundfile.write(folder / f"clip{n}.wav", samples.astype(np.float32) / 5, rate_hz)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("world")
    made = {name: write_clips(root / name, seed) for seed, name in enumerate(("generated", "reference", "training"))}
    index_folder(root / "index", made["training"])
    return made | {"index": root / "index"}


def score(world: dict[str, Path], **more: Any) -> Scores:
    given = {"embedders": ["tagger"], "bundle": "musiccm-tiny", "device": "cpu", "progress": False, **more}
    return musiccm.evaluate(world["generated"], world["reference"], **given)


@pytest.mark.parametrize("more", [{}, {"train": True}, {"train": True, "channel": "first", "seconds": 1.0}])
def test_each_file_is_scanned_once_and_decoded_once(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    opened: Counter[str] = Counter()
    scanned: Counter[str] = Counter()
    open_audio, scan_folder = io.open_audio, audio_folder.scan_folder
    for module in (io, facts):
        monkeypatch.setattr(module, "open_audio", lambda path: (opened.update([str(path)]), open_audio(path))[1])
    monkeypatch.setattr(audio_folder, "scan_folder", lambda root: (scanned.update([str(root)]), scan_folder(root))[1])
    if "train" in more:
        more = {**more, "train": world["index"]}
    score(world, captions={f"clip{n}": "a calm piano" for n in range(N)}, **more)
    files = [str(path) for side in ("generated", "reference") for path in world[side].iterdir()]
    assert opened == dict.fromkeys(files, 2)  # to see whether it can be used, and to hear it
    assert scanned == {str(world[side]): 1 for side in ("generated", "reference")}


@pytest.mark.parametrize("channel", ["mean", "first"])
def test_windows_of_the_one_decoding_are_those_of_the_plagiarism_check(
    world: dict[str, Path], channel: str, tmp_path: Path
) -> None:
    scores = score(world, metrics=["sim_aa"], train=world["index"], channel=channel, embedders=None)
    checked = check_plagiarism(world["generated"], world["index"], tmp_path / "out", pairs=1, train_clips=0)
    expected = {clip["id"].removesuffix(".wav"): clip["nearest"][0] for clip in checked["clips"]}
    assert len(scores.content["nearest"]) == N
    for found in scores.content["nearest"]:
        nearest = expected[found["clip"]]
        assert found["nearest"] == nearest["id"] and found["cosine"] == pytest.approx(nearest["cosine"], abs=1e-5)
    assert scores["sim_aa_90"] == checked["rates"]["generated"]["sim_aa_90"]


def test_folders_files_and_loaded_networks_give_the_same_and_print_nothing(
    world: dict[str, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "musiccm")  # warnings are logging's: four clips are few
    capfd.readouterr()
    by_folder = score(world, metrics=["fd", "kad", "mauve"])
    files = {side: sorted(world[side].iterdir()) for side in ("generated", "reference")}
    tagger = load_embedder("tagger", bundle="musiccm-tiny")
    by_file = musiccm.evaluate(files["generated"], [str(path) for path in files["reference"]], ["fd", "kad", "mauve"],
                               embedders=[tagger], device="cpu", progress=False)
    assert capfd.readouterr() == ("", "")
    assert list(by_folder) == ["fd_tagger", "kad_tagger", "mauve_tagger"] and dict(by_file) == dict(by_folder)
    assert (by_folder.n, by_folder.n_reference, by_folder.content["n_pairs"]) == (N, N, N)
    assert (by_folder.better("fd_tagger"), by_folder.better("mauve_tagger")) == ("lower", "higher")
    assert "mauve_tagger" in str(by_folder) and by_folder.notes == [] and by_folder.references == {}


@pytest.mark.parametrize(("more", "message"), [
    ({"metrics": ["fad"]}, "metrics: expected names among fd, kad"),
    ({"metrics": []}, "metrics: expected at least one name"),
    ({"metrics": ["acc"]}, "metrics: acc needs attributes, which folders of audio do not have"),
    ({"metrics": ["fd", "excess_fd"]}, "metrics: excess_fd needs a floor, which folders of audio do not have"),
    ({"metrics": ["fd", "ta"]}, "captions: needed for the metric ta"),
    ({"metrics": ["fd"], "captions": {"clip0": "a"}}, "captions: given, but ta is not among metrics"),
    ({"captions": {"clip0": "a"}}, "captions: no caption for 3 of 4 generated clips"),
    ({"metrics": ["is"], "embedders": ["clap"]}, "metrics: is needs logits, which none of the embedders"),
    ({"batch_size": 0}, "batch_size: expected at least 1"),
    ({"seconds": 0.001}, "seconds: expected at least"),
    ({"embedders": "tagger"}, "embedders: expected a list"),
    ({"embedders": ["tagger", "tagger"]}, "embedders: tagger is given twice"),
])
def test_errors_speak_of_arguments(world: dict[str, Path], more: dict[str, Any], message: str) -> None:
    with pytest.raises(musiccm.MusiccmError) as raised:
        score(world, **more)
    assert message in str(raised.value) and "--" not in str(raised.value)


def test_the_example_of_the_docs(world: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world["generated"].parent)
    text = (Path(__file__).parents[2] / "docs/evaluate.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    names: dict = {}
    exec(compile(example, "evaluate.md", "exec"), names)
    assert torch.isfinite(torch.tensor(names["scores"]["fd_tagger"]))
