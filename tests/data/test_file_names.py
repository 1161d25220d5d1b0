"""Names of files that are not UTF-8, through everything that a corpus and a folder of clips go through."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import RATE_HZ, sound, write_corpus

from musiccm.audio import write_audio
from musiccm.cli import main
from musiccm.data.module import MusicDataModule
from musiccm.files import write_json
from musiccm.similarity.index import TrainingIndex
from musiccm.texts import PRINTABLE, escaped, printable, read_text, unescaped
from tests.tiny_bundle import build_random_bundle

LATIN = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\xe9"
SAMPLES = 8 * 16 * 160


@given(st.binary(max_size=20), st.lists(st.sampled_from(["\\", "x", "e9", "5c", "\udce9", "é"]), max_size=6))
def test_an_escaped_name_is_text_and_gives_the_name_back(content, parts):
    for name in (os.fsdecode(content), "".join(parts)):
        text = escaped(name)
        assert text == text.encode("utf-8").decode("utf-8") and unescaped(text) == name
        if "\udce9" not in name and "\\x" not in name and printable(name) == name:
            assert text == name


def test_a_name_is_shown_in_hexadecimal():
    assert escaped(os.fsdecode(b"caf\xe9.wav")) == r"caf\xe9.wav"
    assert escaped(r"caf\xe9.wav") == r"caf\x5cxe9.wav"  # another file, and another text
    assert "é\udce9😀".encode("ascii", PRINTABLE) == rb"\u00e9\xe9\U0001f600"
    assert escaped("café.wav") == "café.wav" and escaped(r"a\b.wav") == r"a\b.wav"


def test_json_of_any_text_is_json(tmp_path):
    write_json(tmp_path / "x.json", {f"{LATIN}\n\\": [LATIN, "\ud83d", "é"]})
    text = (tmp_path / "x.json").read_bytes().decode("utf-8")
    assert json.loads(text) == {f"{SHOWN}\n\\": [SHOWN, "\\ud83d", "é"]}


@pytest.mark.parametrize(("mark", "codec"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
                                             (b"\xff\xfe\0\0", "utf-32-le")])
def test_a_byte_order_mark_is_no_text_and_utf_16_is_named(tmp_path, mark, codec):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    assert read_text(tmp_path / "a.txt") == "café\r\n"
    (tmp_path / "b.txt").write_bytes(mark + "café".encode(codec))
    with pytest.raises(Exception, match=r"b.txt: the text is UTF-(16|32) .*expected UTF-8; .*iconv"):
        read_text(tmp_path / "b.txt")


def rename(folder: Path, old: str, new: str) -> None:
    for path in [*folder.rglob(f"{old}.flac"), *folder.rglob(f"{old}.json")]:
        path.rename(path.with_name(new + path.suffix))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A corpus with a name that is no UTF-8 in either split, one of them unusable, and a bundle that encodes it."""
    root = tmp_path_factory.mktemp("world")
    write_corpus(root / "corpus", train=20, test=4)
    rename(root / "corpus", "train_004", LATIN)
    rename(root / "corpus", "test_001", LATIN + "2")
    rename(root / "corpus", "train_007", LATIN + "3")
    (root / "corpus" / "train" / f"{LATIN}3.flac").write_bytes(b"")
    build_random_bundle(root / "bundle", evaluators=False)
    return root


def run(*arguments: str) -> str:
    """Run a command on a terminal whose encoding has nothing but ASCII and refuses the rest; what it printed."""
    shown = io.BytesIO()
    terminal = io.TextIOWrapper(shown, encoding="ascii", errors="strict", write_through=True)
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        code = main(list(arguments))
    assert code == 0, shown.getvalue()
    return shown.getvalue().decode("ascii")


def test_a_corpus_is_read_encoded_and_loaded(world):
    settings = {"root": str(world / "corpus"), "kind": "latent", "bundle": str(world / "bundle"), "batch_size": 4,
                "cache_dir": str(world / "latents"), "clip_samples": SAMPLES, "val_clips": 2}
    (world / "x.yaml").write_text(yaml.safe_dump({"data": {"class_path": "musiccm.data.module.MusicDataModule",
                                                           "init_args": settings}}))
    run("prepare", "latents", "--config", str(world / "x.yaml"))
    report = json.loads((world / "corpus" / "report-train.json").read_bytes().decode())
    assert [(item["id"], item["reason"]) for item in report["bad"]] == [(f"{SHOWN}3", "zero_byte")]
    assert os.path.exists(unescaped(report["bad"][0]["path"]))
    assert f"train/{SHOWN}.flac" in json.loads((world / "corpus" / ".scan-train.json").read_text())["files"]

    data = MusicDataModule(**settings)
    data.setup("fit")
    assert SHOWN in [clip.id for clip in data.clips("train")]
    index = data.latent_cache("train").index
    assert SHOWN in list(index.clip_ids) and len(index) == 19
    seen = {name for batch in data.train_dataloader() for name in batch.ids}
    assert SHOWN in seen | {clip.id for clip in data.val_clips} and len(seen) >= 16
    waveforms = MusicDataModule(**{**settings, "kind": "waveform", "cache_dir": None})
    assert f"{SHOWN}2" in [name for batch in waveforms.test_dataloader() for name in batch.ids]


def test_an_index_and_its_page(world):
    index, out = str(world / "index"), world / f"page{LATIN}"  # folders may have such names too
    said = run("prepare", "index", "--root", str(world / "corpus" / "train"), "--out", index, "--bundle",
               str(world / "bundle"))
    assert "19 of 20 audio files can be used" in said
    found = TrainingIndex(index)
    assert f"{SHOWN}.flac" in list(found.ids)
    assert all(os.path.exists(path) for path in found.paths)
    generated = world / f"made{LATIN}"
    generated.mkdir()
    copied = sound(4)  # of the training clip with this name
    for name in ("one", LATIN):
        write_audio(generated / f"{name}.wav", copied if name == "one" else 0.9 * copied, RATE_HZ)
    (generated / f"{LATIN}.txt").write_text("no audio")
    run("plagiarism", "--generated", str(generated), "--index", index, "--out", str(out))
    report = json.loads((out / "plagiarism.json").read_bytes().decode())
    assert report["generated"] == f"{world}/made{SHOWN}" and {s["id"] for s in report["suspects"]} == {
        "one.wav", f"{SHOWN}.wav"}
    assert [(item["reason"], item["path"]) for item in report["left_out"]] == [
        ("not_audio", f"{world}/made{SHOWN}/{SHOWN}.txt")]
    near = report["suspects"][0]["nearest"][0]
    assert near["id"] == f"{SHOWN}.flac" and os.path.exists(unescaped(near["path"]))
    page = (out / "index.html").read_bytes().decode()
    assert SHOWN in page and (out / report["suspects"][0]["audio"][1]).is_file()


def test_folders_that_safetensors_cannot_open_are_refused_before_the_work(world, tmp_path, capsys):
    assert main(["prepare", "index", "--root", str(world / "corpus" / "train"), "--out", str(tmp_path / LATIN)]) == 2
    assert f"--out: {tmp_path}/{SHOWN}: the path is not UTF-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_pairs_such_names_and_writes_them(tmp_path):
    folders = [tmp_path / f"{side}{LATIN}" for side in ("generated", "reference")]
    for side, folder in enumerate(folders):
        folder.mkdir()
        for n, name in enumerate(["a", "b", LATIN]):
            write_audio(folder / f"{name}.wav", sound(10 * side + n, 1.2), RATE_HZ)
    (folders[0] / f"{LATIN}2.wav").write_bytes(b"")
    (tmp_path / "captions.csv").write_bytes(b"path,caption\na.wav,one\nb.wav,two\ncaf\xe9.wav,three\n")
    (tmp_path / "captions.json").write_text(json.dumps({"a": "one", "b": "two", SHOWN: "three"}))
    results = []
    for captions in ("captions.csv", "captions.json"):
        said = run("evaluate", "--generated", str(folders[0]), "--reference", str(folders[1]), "--bundle",
                   "musiccm-tiny", "--embedder", "tagger", "--captions", str(tmp_path / captions), "--device", "cpu",
                   "--out", str(tmp_path / f"{LATIN}.json"))
        assert f"{SHOWN}2.wav: zero_byte" in said
        results.append(json.loads((tmp_path / f"{LATIN}.json").read_bytes().decode()))
    assert results[0] == results[1] and results[0]["n_pairs"] == 3
    assert [item["id"] for item in results[0]["left_out"]["generated"]] == [f"{SHOWN}2"]
