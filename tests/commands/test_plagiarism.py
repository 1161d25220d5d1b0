"""`musiccm prepare index` and `musiccm plagiarism`, from the command line to a page that can be opened."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from musiccm.audio import read_audio, write_audio
from musiccm.cli import main
from musiccm.models.bundle import Bundle
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.page import histogram
from tests.tiny_bundle import build_random_bundle

TRAIN, TEST = 7, 3
EVIL = "<img src=x onerror=alert('1')>&.wav"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A demo corpus, an index of its training part, and a folder of generated audio with a planted copy."""
    folder = tmp_path_factory.mktemp("world")
    assert main(["prepare", "demo", "--out", str(folder / "corpus"), "--tracks", str(TRAIN), "--test-tracks", str(TEST),
                 "--validation-tracks", "0", "--seed", "5", "--workers", "1"]) == 0
    assert main(["prepare", "index", "--root", str(folder / "corpus" / "train"), "--out", str(folder / "index")]) == 0
    generated = folder / "generated"
    track = sorted((folder / "corpus" / "train").iterdir())[2]
    waveform, rate = read_audio(track)
    copied = waveform[30_000 : 30_000 + 81_920]
    noise = torch.randn(len(copied), generator=torch.Generator().manual_seed(0))
    write_audio(generated / "copy.wav", 0.4 * copied + 0.004 * copied.std() * noise, rate)
    test = sorted((folder / "corpus" / "test").iterdir())
    for path, name in zip(test, ["deep/a.flac", "b.flac"], strict=False):
        (generated / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, generated / name)
    write_audio(generated / EVIL, read_audio(test[2])[0], rate)
    (folder / "track").write_text(track.name)
    return folder


def hurt(generated: Path) -> None:
    (generated / "broken.wav").write_bytes(b"RIFF no more")
    (generated / "none.flac").write_bytes(b"")
    write_audio(generated / "still.wav", torch.zeros(32_000), 16_000)
    write_audio(generated / "brief.wav", torch.rand(4000), 16_000)
    (generated / "captions.json").write_text("{}")


class Page(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_report(world: Path, tmp_path: Path, capsys) -> None:
    generated, out = tmp_path / "generated", tmp_path / "out"
    shutil.copytree(world / "generated", generated)
    hurt(generated)
    arguments = ["plagiarism", "--generated", str(generated), "--index", str(world / "index"), "--reference",
                 str(world / "corpus" / "test"), "--out", str(out), "--top", "3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "plagiarism.json").read_text())
    assert {(Path(i["path"]).name, i["reason"]) for i in report["left_out"]} == {
        ("broken.wav", "unreadable"), ("none.flac", "zero_byte"), ("still.wav", "silent"), ("brief.wav", "too_short"),
        ("captions.json", "not_audio")}
    assert "left out: 5 files" in printed and "likely copy: 1 of 4" in printed

    rates = report["rates"]
    assert [rates[name]["n"] for name in ("generated", "held_out", "train_itself")] == [4, TEST, TRAIN]
    nearest = {clip["id"]: clip["nearest"] for clip in report["clips"]}
    assert set(nearest) == {"copy.wav", "deep/a.flac", "b.flac", EVIL}
    highest = torch.tensor([found[0]["cosine"] for found in nearest.values()], dtype=torch.float64)
    assert rates["generated"]["sim_aa_90"] == float((highest > 0.9).double().mean())
    assert all([n["cosine"] for n in found] == sorted((n["cosine"] for n in found), reverse=True)
               and len({n["id"] for n in found}) == 3 for found in nearest.values())

    copies = [suspect for suspect in report["suspects"] if suspect["likely_copy"]]
    assert [suspect["id"] for suspect in copies] == ["copy.wav"]
    (copy,) = copies
    assert copy["shown"] == (world / "track").read_text() and copy["correlation"] > 0.9
    assert copy["training_start_s"] - copy["start_s"] == pytest.approx(30_000 / 16_000, abs=0.011)
    assert max(suspect["correlation"] for suspect in report["suspects"] if not suspect["likely_copy"]) < 0.6
    ours, theirs = (read_audio(out / name)[0] for name in copy["audio"])
    shifted = [theirs[200 + lag : 40_000 + lag] for lag in range(-160, 161)]  # within a frame
    assert max(float(torch.corrcoef(torch.stack([ours[200:40_000], other]))[0, 1]) for other in shifted) > 0.98

    text = (out / "index.html").read_text()
    page = Page(text)
    assert EVIL in page.text and not any(tag == "img" or "onerror" in attrs for tag, attrs in page.tags)
    players = [attrs["src"] for tag, attrs in page.tags if tag == "audio"]
    assert len(players) == 8 and all((out / src).is_file() for src in players)
    assert "http" not in text.replace("http-equiv", "")
    assert main([*arguments, "--pairs", "1"]) == 0
    assert len(list((out / "audio").iterdir())) == 2  # nothing is left of the report before


def test_index_of_an_experiment_and_of_its_cache(world: Path, tmp_path: Path, capsys) -> None:
    build_random_bundle(tmp_path / "bundle", evaluators=False)
    data = {"root": str(world / "corpus"), "kind": "latent", "bundle": str(tmp_path / "bundle"), "val_clips": 2,
            "cache_dir": str(tmp_path / "latents"), "clip_samples": 8 * 16 * 160, "windows_per_track": 2}
    config = tmp_path / "x.yaml"
    config.write_text(yaml.safe_dump({"data": {"init_args": data}}))
    command = ["prepare", "index", "--config", str(config)]
    assert main([*command, "--out", str(tmp_path / "a"), "--hop-s", "1"]) == 0
    assert main(["prepare", "latents", "--config", str(config)]) == 0
    assert main([*command, "--out", str(tmp_path / "b"), "--from-cache"]) == 0
    whole, cached = TrainingIndex(tmp_path / "a"), TrainingIndex(tmp_path / "b")
    # What is held out for validation is not trained on.
    assert list(whole.ids) == list(cached.ids) and whole.n_clips == TRAIN - 1
    total, _ = read_audio(whole.paths[0])
    assert whole.first_row[1] == math.ceil(len(total) / 16_000 - 1) + 1 and cached.first_row[1] == 2
    # The first window of the cache is that of the index: CLAP hears one second of either.
    assert cached.start_s(0) == whole.start_s(0) == 0.0
    torch.testing.assert_close(cached.read(0, 1), whole.read(0, 1), atol=1e-4, rtol=0)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "a"), "--hop-s", "0.5"]) == 2
    assert "hop_samples is 16000, expected 8000" in capsys.readouterr().err
    # Another CLAP than the index was built with.
    assert main(["plagiarism", "--generated", str(world / "generated"), "--index", str(tmp_path / "a"), "--bundle",
                 "musiccm-tiny", "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "built with another CLAP" in shown and str(tmp_path / "bundle") in shown
    assert whole.key["clap"] == Bundle.from_pretrained(tmp_path / "bundle").content_hash(
        ["text_encoder", "feature_extractor"])


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_bad_input_is_named(world: Path, tmp_path: Path, capsys) -> None:
    check = ["plagiarism", "--generated", world / "generated", "--out", tmp_path / "out", "--index"]
    assert "no index of training clips here" in fails(capsys, *check, tmp_path / "nowhere")
    check.append(world / "index")
    (tmp_path / "empty").mkdir()
    check[2] = tmp_path / "empty"
    assert f"{tmp_path / 'empty'}: no audio that can be used; expected files ending in" in fails(capsys, *check)
    hurt(tmp_path / "empty")
    assert "4 files were left out (silent, too_short, unreadable, zero_byte)" in fails(capsys, *check)
    check[2] = tmp_path / "gone"
    assert f"{tmp_path / 'gone'}: no such folder" in fails(capsys, *check)
    check[2] = world / "generated"
    assert "lies in" in fails(capsys, *check, "--out", world / "generated" / "report")
    assert "--top: expected at least 1" in fails(capsys, *check, "--top", "0")
    index = ["prepare", "index", "--out", tmp_path / "index", "--root"]
    assert "name" in (shown := fails(capsys, *index, world / "corpus")) and "held-out music would count" in shown
    (tmp_path / "bare").mkdir()
    assert "no audio found" in fails(capsys, *index, tmp_path / "bare")
    assert "--hop-s: expected more than 0" in fails(capsys, *index, world / "corpus" / "train", "--hop-s", "0")
    assert "at most the window of 5 s" in fails(capsys, *index, world / "corpus" / "train", "--hop-s", "6")
    assert "--from-cache: expected --config" in fails(capsys, *index, world / "corpus" / "train", "--from-cache")
    assert not (tmp_path / "out").exists()


def test_training_audio_that_moved_is_told(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "corpus" / "train", tmp_path / "train")
    assert main(["prepare", "index", "--root", str(tmp_path / "train"), "--out", str(tmp_path / "index")]) == 0
    shutil.rmtree(tmp_path / "train")
    assert main(["plagiarism", "--generated", str(world / "generated"), "--index", str(tmp_path / "index"), "--out",
                 str(tmp_path / "out"), "--top", "1", "--train-clips", "0"]) == 0
    report = json.loads((tmp_path / "out" / "plagiarism.json").read_text())
    assert report["second_opinion"]["training_audio_unreadable"] == 4
    assert "train_itself" not in report["rates"] and any("--reference" in note for note in report["notes"])
    (suspect, *_) = report["suspects"]
    assert suspect["correlation"] is None and suspect["audio"][1] is None and "missing" in suspect["unread"][0]


def test_histogram_counts_every_clip() -> None:
    page = Page(histogram({"generated": [0.5, 0.91, 0.96, 1.0], "held_out": [0.91, -1.0]}))
    counts = [int(text.split()[0]) for text in page.text if text.endswith(("generated", "held out"))]
    assert sum(counts) == 6 and "generated (n = 4)" in page.text
