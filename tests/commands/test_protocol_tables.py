"""`musiccm tables --protocol consistencytta`: the numbers against NumPy and SciPy, and what is said beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import soundfile
import torch

import musiccm
from musiccm.cli import main
from musiccm.data.audio_folder import Preparation, read_captions
from musiccm.embedders import Embedder, Embeddings, load_embedder
from musiccm.errors import MusiccmError

N, RATE_HZ, SAMPLES = 5, 16000, 160000
VIDEOS = [f"abcdefghij{n}_{10 * n}" for n in range(N)]
CAPTIONS = ["a calm piano melody", "fast drums", "slow organ chords", "a flute", "strings and drums"]


class Bands(Embedder):
    """Loudness in bands of time, with logits: a network that is easily written again."""

    sample_rate_hz, min_duration_s, fingerprint = RATE_HZ, 12 / RATE_HZ, "bands"

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.width, self.lengths = name, width, []

    def forward(self, waveform_BS, sample_rate_hz):
        self.lengths.append((waveform_BS.shape[1], sample_rate_hz))
        rows = torch.stack([part.abs().mean(1) for part in waveform_BS.tensor_split(self.width, 1)], 1)
        return Embeddings(rows, [1] * len(rows), 20 * rows if self.name == "pann" else None)


def cells(text: str, first: str) -> list[str]:
    """The cells behind the first one, of the line that begins with it."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return next(line[1:] for line in lines if line[0] == first)


def write(folder: Path, seed: int, names=VIDEOS, seconds=(10.24, 9.0, 12.0, 10.0, 10.24)) -> Path:
    draw = np.random.default_rng(seed)
    folder.mkdir()
    for name, length in zip(names, seconds, strict=True):
        t = np.arange(round(length * RATE_HZ)) / RATE_HZ
        loudness = np.interp(t, np.linspace(0, 12, 7), draw.uniform(0, 1, 7))
        sound = np.sin(2 * np.pi * draw.uniform(100, 900) * t) * loudness
        noisy = 0.1 * sound + 0.01 * draw.standard_normal(len(t)) + 0.03
        soundfile.write(folder / f"{name}.wav", noisy.astype(np.float32), RATE_HZ, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("protocol")
    lines = [json.dumps({"dataset": "audiocaps", "location": f"dataset/{name}.wav", "captions": caption})
             for name, caption in zip(VIDEOS, CAPTIONS, strict=True)]
    (root / "test_audiocaps_subset.json").write_text("\n".join(reversed(lines)))  # their order means nothing here
    return {"generated": write(root / "generated", 0), "reference": write(root / "reference", 1),
            "captions": root / "test_audiocaps_subset.json"}


def prepared(folder: Path) -> np.ndarray:
    """The protocol's reading, of files of 16 kHz, written again."""
    found = []
    for name in VIDEOS:
        wave = soundfile.read(folder / f"{name}.wav")[0]
        wave = (wave - wave.mean())[:SAMPLES]
        wave = np.concatenate([wave, np.zeros(SAMPLES - len(wave))])
        found.append(wave / np.abs(wave).max() / 2)
    return np.stack(found)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    gap = ((first.mean(0) - second.mean(0)) ** 2).sum()
    covariances = [np.cov(rows, rowvar=False) for rows in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return gap + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))


def score(world, **more):
    given = {"embedders": [Bands("vgg", 2), Bands("pann", 3)], "bundle": "musiccm-tiny", "device": "cpu",
             "captions": world["captions"], "progress": False, "protocol": "consistencytta", **more}
    return musiccm.evaluate(world["generated"], world["reference"], **given)


def test_every_number_is_that_of_the_prepared_clips(world):
    networks = [Bands("vgg", 2), Bands("pann", 3)]
    scores = score(world, batch_size=2, embedders=networks)
    for network in networks:  # but for the first call, which asks whether it classifies
        assert network.lengths[1:] == [(SAMPLES, RATE_HZ)] * 6
    fake, real = prepared(world["generated"]), prepared(world["reference"])
    rows = {width: [np.stack([part.mean(1) for part in np.array_split(np.abs(side), width, 1)], 1)
                    for side in (fake, real)] for width in (2, 3)}
    assert scores["fd_vgg"] == pytest.approx(frechet(*rows[2]), rel=1e-3, abs=1e-9)
    assert scores["fd_pann"] == pytest.approx(frechet(*rows[3]), rel=1e-3, abs=1e-9)
    p, q = (np.exp(20 * side) / np.exp(20 * side).sum(1, keepdims=True) for side in rows[3])
    assert scores["kl_pann"] == pytest.approx((q * (np.log(q) - np.log(p + 1e-6))).sum(1).mean(), rel=1e-4)
    clap = load_embedder("clap", bundle="musiccm-tiny")
    embedded = [clap(torch.from_numpy(side).float(), RATE_HZ).embedding_RE.double().numpy() for side in (fake, real)]
    text = clap.text(CAPTIONS).double().numpy()
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (*embedded, text)]
    for key, (a, b) in (("clap_t", (unit[0], unit[2])), ("clap_a", (unit[0], unit[1]))):
        assert scores[key] == pytest.approx(100 * np.maximum((a * b).sum(1), 0).mean(), rel=1e-4)
    assert scores.references["test_set_clap_t"] == pytest.approx(
        100 * np.maximum((unit[1] * unit[2]).sum(1), 0).mean(), rel=1e-4)
    said = " ".join(scores.notes)
    assert "16000 Hz, 10.0 s from the start" in said and "peak 0.5; pairs by clip id" in said
    assert "clamped clip by clip, times 100" in said and f"n = {N}, the published figures are of 882 clips" in said
    assert scores.content["settings"]["protocol"] == "consistencytta" and "distances follow length" not in said


def test_other_rates_become_16_khz():
    """A tone above 8 kHz is gone, one below keeps its place and its level is the protocol's."""
    rate_hz = 44100
    t = torch.arange(rate_hz * 11) / rate_hz
    how = Preparation(10.0, RATE_HZ, 0.5)
    low = how(0.2 * torch.sin(2 * torch.pi * 1000 * t) + 0.1, rate_hz)
    assert low.shape == (SAMPLES,) and float(low.abs().max()) == pytest.approx(0.5)
    spectrum = torch.fft.rfft(low).abs()
    assert int(spectrum.argmax()) == 10000 and float(low.mean().abs()) < 1e-3
    both = how(0.2 * torch.sin(2 * torch.pi * 1000 * t) + 0.2 * torch.sin(2 * torch.pi * 12000 * t), rate_hz)
    spectrum = torch.fft.rfft(both).abs()
    assert spectrum[10000] > 1e4 and spectrum[40000] < 0.01 * spectrum[10000]  # where 12 kHz would be folded to
    assert not how(torch.zeros(100), RATE_HZ).any()


def test_what_the_protocol_says_itself_is_refused(world, tmp_path):
    for name, value in (("metrics", ["fd"]), ("seconds", 5.0), ("train", "x"), ("captions", None)):
        with pytest.raises(MusiccmError, match=f"{name}: the protocol consistencytta"):
            score(world, **{name: value})
    with pytest.raises(MusiccmError, match="protocol: expected one of consistencytta, found 'x'"):
        score(world, protocol="x")
    half = tmp_path / "half"
    shutil.copytree(world["generated"], half)
    (half / f"{VIDEOS[0]}.wav").rename(half / "output_0.wav")
    with pytest.raises(MusiccmError, match="1 generated clips have no partner, first output_0; 1 reference clips have "
                                           f"no partner, first {VIDEOS[0]}"):
        score(world | {"generated": half})


def test_folders_become_a_table(world, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("one", "two")}
    for folder in folders.values():
        shutil.copytree(world["generated"], folder)
    arguments = ["tables", "--protocol", "consistencytta", "--reference", str(world["reference"]), "--captions",
                 str(world["captions"]), "--embedder", "tagger", "--bundle", "musiccm-tiny", "--device", "cpu"]
    assert main([*arguments, "--generated", f"student={folders['one']}", "--generated", str(folders["two"])]) == 0
    text = capsys.readouterr().out
    expected = [f"{score(world)[key]:.4g}" for key in ("clap_t", "clap_a")]
    for name in ("student", "two"):
        assert cells(text, name) == ["-", *expected, "-", "-", "-", str(N)]
    assert cells(text, "published: ConsistencyTTA") == ["1", "22.5", "72.3", "2.575", "22.08", "1.354", "882"]
    assert cells(text, "real clips")[0] == "-" and cells(text, "real clips")[-1] == str(N)
    assert "are not comparable with them" in text and "CLAP_T: clip against its prompt" in text
    written = json.loads((tmp_path / "one-consistencytta.json").read_text())
    assert f"{written['figures']['clap_a']:.4g}" == expected[1]
    for more, said in ((["--generated", "a", "--generated", "x/a"], "expected a name that no other row has"),
                       ([], "either --generated with folders or --config"),
                       (["--generated", "a", "--config", "b"], "found both")):
        assert main([*arguments, *more]) == 2 and said in capsys.readouterr().err
    assert main(["tables", "--protocol", "x", "--generated", "a"]) == 2
    assert "--protocol: expected one of consistencytta" in capsys.readouterr().err
    assert main(["tables", "--protocol", "consistencytta", "--generated", "a"]) == 2
    assert "--reference: expected one beside --generated" in capsys.readouterr().err
    assert main(["tables"]) == 2 and "--config: expected an experiment file" in capsys.readouterr().err
    assert main(["tables", "--config", "x", "--clap", "y"]) == 2
    assert "only goes with --protocol" in capsys.readouterr().err


def test_an_evaluated_run_in_the_same_columns(tmp_path, capsys):
    config = tmp_path / "big.yaml"
    config.write_text("trainer: {max_steps: 1}\n")
    path = tmp_path / "runs/big/version_0/results.json"
    path.parent.mkdir(parents=True)
    rows = [{"model": model, "steps": steps, "fd_pann": fd, "kl_pann": 4.0, "clap_t": 30.0, "clap_a": 60.0,
             "network_calls": calls, "decoder": "fast"}
            for model, steps, fd, calls in (("teacher", 50, 20.0, 100), ("student", 1, 27.13, 1))]
    content = {"schema": 1, "experiment": "big", "n": 256, "rows": rows, "references": {"test_set_clap_t": 33.0}}
    path.write_text(json.dumps(content))
    arguments = ["tables", "--protocol", "consistencytta", "--config", str(config), "--runs", str(tmp_path / "runs")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    found = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in text.splitlines() if "fast decoder" in line}
    assert list(found.values()) == [["100", "30", "60", "-", "20", "4", "256"],
                                    ["1", "30", "60", "-", "27.13", "4", "256"]]
    assert [(name.split(",")[0].lower(), "1 steps" in name) for name in found] == [
        ("teacher", False), ("student", True)]
    assert cells(text, "real clips")[1] == "33"
    assert "whole windows at the level they have" in text and "FAD: not taken by this run (vgg is not among" in text
    assert path.with_name("tables-consistencytta.md").read_text() == text
    for stated, said in (({}, "musiccm-tiny, fingerprint not stated"),
                         ({"text_audio_fingerprint": "0123456789abcdef" * 4}, "musiccm-tiny, fingerprint 01234567")):
        path.write_text(json.dumps(content | {"text_audio": "musiccm-tiny"} | stated))
        assert main(arguments) == 0 and f"the CLAP that measured: {said}" in capsys.readouterr().out
    content["rows"] = [{"model": "teacher", "steps": 50, "fd_tagger": 1.0, "latency_s": 1.0}]
    path.write_text(json.dumps(content))
    assert main(arguments) == 2 and "evaluation.embedders [vgg, pann] and a CLAP" in capsys.readouterr().err
    assert main([*arguments, "--clap", "x"]) == 2 and "a run was evaluated already" in capsys.readouterr().err


def test_captions_in_tangos_lines(world, tmp_path):
    assert read_captions(world["captions"]) == dict(zip(VIDEOS, CAPTIONS, strict=True))
    path = tmp_path / "lines.jsonl"
    path.write_text('{"location": "a/b.wav", "captions": "x"}\n{"location": 3}\n')
    with pytest.raises(MusiccmError, match="1 lines cannot be used, first line 2: location is 3"):
        read_captions(path)
    path.write_text('{"location": "a/b.wav", "captions": "x"}\n{"location": "c/b.wav", "captions": "y"}\n')
    with pytest.raises(MusiccmError, match="two different captions"):
        read_captions(path)
    plain = tmp_path / "plain.json"
    plain.write_text('{"location": "a caption of a clip that is called so"}')
    assert read_captions(plain) == {"location": "a caption of a clip that is called so"}
