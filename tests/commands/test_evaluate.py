"""`musiccm evaluate`: figures of two folders against the reference implementation, and everything that may go wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musiccm.cli import main

N = 24


def write_clips(folder: Path, count: int, seed: int, seconds: float = 1.2, rate_hz: int = 16000) -> Path:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    for n in range(count):
        tones = sum(np.sin(2 * np.pi * f * time) for f in draw.uniform(100, 3000, 3))
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * draw.uniform(1, 8) * time)
        samples = 0.1 * tones * swell + 0.01 * draw.standard_normal(len(time))
        soundfile.write(folder / f"clip{n:02d}.wav", samples.astype(np.float32), rate_hz)
    return folder


def evaluate(generated: Path, reference: Path, *more: str) -> int:
    return main(["evaluate", "--generated", str(generated), "--reference", str(reference), "--bundle", "musiccm-tiny",
                 "--embedder", "tagger", "--device", "cpu", *more])


def result_of(generated: Path) -> dict[str, Any]:
    return json.loads(generated.with_name(f"{generated.name}-evaluation.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folders")
    return write_clips(root / "generated", N, 0), write_clips(root / "reference", N, 1)


def test_figures_equal_audioldm_eval_on_the_same_embeddings(folders, capsys) -> None:
    generated, reference = folders
    assert evaluate(generated, reference, "--reference-implementation") == 0
    result = result_of(generated)
    assert (result["n"], result["n_reference"], result["n_pairs"]) == (N, N, N)
    ours, theirs = result["figures"], result["reference_implementation"]
    assert set(theirs) == {"fd_tagger", "is_tagger_mean", "is_tagger_std", "kl_tagger"}
    assert ours["fd_tagger"] == pytest.approx(theirs["fd_tagger"], rel=1e-4) and ours["fd_tagger"] > 0
    for key in ("is_tagger_mean", "is_tagger_std", "kl_tagger"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-6), key
    out = capsys.readouterr().out
    assert "audioldm_eval" in out and f"n = {N} generated" in out
    assert len(result["networks"]["tagger"]) == 64


def test_a_folder_against_itself_is_perfect(folders, tmp_path: Path, capsys) -> None:
    generated, _ = folders
    copy = tmp_path / "copy"
    shutil.copytree(generated, copy)
    capsys.readouterr()
    assert evaluate(copy, generated, "--coverage") == 0
    found, said = result_of(copy)["figures"], capsys.readouterr().out
    assert found["fd_tagger"] == pytest.approx(0.0, abs=1e-5) and found["kl_tagger_exact"] == pytest.approx(0.0)
    # halves of 12 clips, of 5 neighbours (Naeem et al. 2020, section 3.2): 1 - (11 10 9 8 7) / (23 22 21 20 19)
    assert found["coverage_tagger_expected"] == pytest.approx(1 - 55440 / 4037880)
    for key in ("coverage_tagger", "density_tagger", "precision_tagger", "recall_tagger"):
        assert found[key] > 0 and re.search(rf"{key} .* higher", said), key


def test_left_out_unpaired_and_unlike_sets_are_said(folders, tmp_path: Path, capsys) -> None:
    generated = tmp_path / "generated"
    shutil.copytree(folders[0], generated)
    (generated / "clip23.wav").rename(generated / "other.wav")
    soundfile.write(generated / "clip22.wav", np.zeros(20000), 16000)
    (generated / "clip21.wav").write_bytes(b"broken")
    reference = write_clips(tmp_path / "reference", N, 1, 2.0, 22050)
    # one name in two Unicode forms
    (generated / "clip20.wav").rename(generated / "e\u0301.wav")
    (reference / "clip20.wav").rename(reference / "\u00e9.wav")
    (generated / "linked").symlink_to(folders[0], target_is_directory=True)
    (generated / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (generated / "apple.wma").write_bytes(b"x")
    for name in ("prompt.txt", ".hidden.wav"):
        (generated / name).write_text("x")
    assert evaluate(generated, reference) == 0
    result, out = result_of(generated), capsys.readouterr().out
    assert (result["n"], result["n_reference"], result["n_pairs"]) == (N - 2, N, N - 3)
    assert {Path(item["path"]).name: item["reason"] for item in result["left_out"]["generated"]} == {
        "clip22.wav": "silent", "clip21.wav": "unreadable", "linked": "link_not_followed", "gone.wav": "broken_link",
        "apple.wma": "unsupported", "prompt.txt": "not_audio", ".hidden.wav": "hidden"}
    assert result["unpaired"] == {"generated": ["other"], "reference": ["clip21", "clip22", "clip23"]}
    linked = f"linked: link_not_followed (a link to the folder {folders[0]}"
    for said in ("clip22.wav: silent", "5 generated files were left out", linked,
                 "2 entries of generated are hidden or no audio", "1 generated clips have no reference",
                 "last 1.20 s, references 2.00 s", "22050 Hz"):
        assert said in out, said


def test_sets_without_a_common_name_have_no_kl(folders, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    shutil.copytree(folders[0], generated)
    for path in sorted(generated.iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    assert evaluate(generated, folders[1], "--reference-implementation") == 0
    result = result_of(generated)
    assert result["n_pairs"] == 0 and result["figures"]["kl_tagger"] is None
    assert "kl_tagger" not in result["reference_implementation"]
    assert result["figures"]["fd_tagger"] == pytest.approx(result["reference_implementation"]["fd_tagger"], rel=1e-4)


def test_text_audio_similarity_with_captions(folders, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    shutil.copytree(folders[0], generated)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"clip{n:02d}": ["a calm piano", "fast drums"][n % 2] for n in range(N)}))
    assert evaluate(generated, folders[1], "--captions", str(captions)) == 0
    result = result_of(generated)
    assert -1 <= result["figures"]["ta_similarity"] <= result["references"]["retrieval_max_ta"] + 0.5
    assert result["references"]["n_test_set_ta"] == N and result["references"]["n_retrieval_max_gallery"] == N
    captions.write_text(json.dumps({"clip00": "a calm piano"}))
    assert evaluate(generated, folders[1], "--captions", str(captions)) == 2


def test_sim_aa_against_an_index_of_the_references(folders, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    shutil.copytree(folders[0], generated)
    shutil.copy(folders[1] / "clip07.wav", generated / "clip03.wav")
    index = tmp_path / "index"
    training = tmp_path / "training"
    shutil.copytree(folders[1], training)
    for folder in (training, generated):
        (folder / "linked").symlink_to(folders[0], target_is_directory=True)
    (training / "notes.txt").touch()
    assert main(["prepare", "index", "--root", str(training), "--bundle", "musiccm-tiny", "--out", str(index)]) == 0
    report = json.loads((index / "report.json").read_text())
    assert [(item["id"], item["reason"]) for item in report["bad"]] == [("linked", "link_not_followed")]
    assert any("notes.txt" in note for note in report["notes"])
    assert evaluate(generated, folders[1], "--train", str(index)) == 0
    result = result_of(generated)
    assert result["references"]["test_set_sim_aa_95"] == 1.0  # each reference is in the index itself
    assert [item["id"] for item in result["left_out"]["generated"]] == ["linked"]  # once, though two scans found it
    first = result["nearest"][0]
    assert first["clip"] == "clip03" and first["nearest"] == "clip07.wav"
    assert first["cosine"] == pytest.approx(1.0, abs=1e-5)
    above = sum(match["cosine"] > 0.9 for match in result["nearest"]) / N
    assert result["figures"]["sim_aa_90"] == pytest.approx(above) and above > 0


def test_a_clap_that_hears_for_two_figures_hears_once(folders, tmp_path: Path, monkeypatch) -> None:
    from musiccm.embedders.clap import ClapEmbedder

    heard: list[int] = []
    hear = ClapEmbedder.embed
    monkeypatch.setattr(ClapEmbedder, "embed", lambda self, wave: heard.append(len(wave)) or hear(self, wave))
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"clip{n:02d}": "a calm piano" for n in range(N)}))
    assert evaluate(*folders, "--embedder", "clap", "--captions", str(captions)) == 0
    assert result_of(folders[0])["figures"]["fd_bundle_clap"] > 0
    assert sum(heard) == 2 * N + 1  # and the tone that tells whether it classifies


@pytest.mark.parametrize(("arguments", "message"), [
    (["--generated", "nowhere"], "nowhere: no such folder"),
    (["--embedder", "ear"], "embedder 'ear': expected one of"),
    (["--batch-size", "0"], "--batch-size: expected at least 1"),
    (["--seconds", "0.01"], "--seconds: expected at least"),
    (["--train", "nowhere"], "nowhere: no index of training clips"),
    (["--embedder", "tagger"], "given twice"),
    (["--captions", "missing.json"], "missing.json: cannot be read"),
])
def test_bad_arguments_are_named(folders, arguments: list[str], message: str, capsys) -> None:
    assert evaluate(*folders, *arguments) == 2
    assert message in capsys.readouterr().err


def test_one_clip_is_refused(tmp_path: Path, folders, capsys) -> None:
    one = write_clips(tmp_path / "one", 1, 5)
    assert evaluate(one, folders[1]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_missing_weights_are_named_with_where_to_put_them(folders, monkeypatch, capsys) -> None:
    monkeypatch.delenv("MUSICCM_WEIGHTS", raising=False)
    assert evaluate(*folders, "--embedder", "pann") == 2
    message = capsys.readouterr().err
    assert "Cnn14_16k_mAP=0.438.pth" in message and "MUSICCM_WEIGHTS" in message


def test_embedders_that_do_not_classify_leave_is_and_kl_out(folders, tmp_path: Path, capsys) -> None:
    generated, reference = folders
    out = tmp_path / "scores.json"
    assert main(["evaluate", "--generated", str(generated), "--reference", str(reference), "--bundle", "musiccm-tiny",
                 "--embedder", "clap", "--device", "cpu", "--out", str(out)]) == 0
    assert "without is, kl: none of the embedders classifies" in capsys.readouterr().out
    assert set(json.loads(out.read_text())["figures"]) == {"fd_bundle_clap"}
