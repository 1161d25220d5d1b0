"""The demo's music in MagnaTagATune's layout: true tables, true codec, the same notes, and read by the same reader."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musiccm.data.corpora.magnatagatune import list_magnatagatune
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.data.corpora.tag_words import ALL_TAGS
from musiccm.data.demo.corpus import write_track
from musiccm.data.demo.magnatagatune import clip_path, drawn_as, write_clip, write_magnatagatune
from musiccm.data.demo.world import draw_attributes, track_rng
from musiccm.errors import MusiccmError

SEED = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "mtat"
    write_magnatagatune(root, tracks=13, seed=SEED, test_tracks=2, workers=1)
    return root


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream, delimiter="\t"))


def test_tables_and_files_are_as_the_real_ones(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir() if path.is_dir()} == set("0123456789abcdef")
    header, *rows = table(corpus / "annotations_final.csv")
    assert header == ["clip_id", *ALL_TAGS, "mp3_path"] and len(rows) == 15
    assert (corpus / "annotations_final.csv").read_text().startswith('"clip_id"\t"no voice"\t"singer"\t')
    assert {cell for row in rows for cell in row[1:-1]} == {"0", "1"} and len({row[0] for row in rows}) == 15
    info_header, *infos = table(corpus / "clip_info_final.csv")
    assert info_header[0] == "clip_id" and info_header[-1] == "mp3_path" and len(info_header) == 10
    assert [(row[0], row[-1]) for row in infos] == [(row[0], row[-1]) for row in rows]
    assert {row[-1] for row in rows} == {str(path.relative_to(corpus)) for path in corpus.glob("?/*.mp3")}
    for row in rows:
        assert re.fullmatch(r"[0-9a-f]/[^/]+-[^/]+-\d+-[^/]+-0-10\.mp3", row[-1])
        data = (corpus / row[-1]).read_bytes()
        information = soundfile.info(corpus / row[-1])
        assert (information.format, information.samplerate, information.channels) == ("MP3", 16000, 1)
        # 32 kb/s: a frame of 576 samples at 16 kHz has 72 * 32000 / 16000 = 144 bytes
        assert data[0] == data[144] == data[288] == 0xFF and len(data) * 8 / 10.24 == pytest.approx(32000, rel=0.03)


def test_it_is_the_same_music_and_the_tags_tell_of_it(corpus: Path, tmp_path: Path) -> None:
    for folder in ("train", "test", "label"):
        (tmp_path / folder).mkdir()
    tags = {row[-1]: {tag for tag, cell in zip(ALL_TAGS, row[1:-1], strict=True) if cell == "1"}
            for row in table(corpus / "annotations_final.csv")[1:]}
    for split, index in (("train", 3), ("test", 1)):
        stem = write_track(tmp_path, SEED, split, index)
        original, _ = soundfile.read(tmp_path / split / f"{stem}.flac")
        path = clip_path(SEED, split, index)
        coded, _ = soundfile.read(corpus / path)
        # the codec delays by a few frames: compare at the best lag
        spectrum = np.conj(np.fft.rfft(original, 2 * len(coded))) * np.fft.rfft(coded, 2 * len(coded))
        peak = np.fft.irfft(spectrum)[:4000].max()
        assert peak / (np.linalg.norm(original) * np.linalg.norm(coded)) > 0.9
        heard = json.loads((tmp_path / "label" / f"{stem}.json").read_text())["original_data"]["attributes"]
        word = {"marimba": "percussion", "synth lead": "synth", "synth pad": "synth"}
        assert word.get(heard["instrument"], heard["instrument"]) in tags[path]
    for index in range(13):
        attributes = draw_attributes(track_rng(SEED, drawn_as("train", index), index))
        own = tags[clip_path(SEED, "train", index)]
        assert not (attributes.drums == "none" and own & {"drums", "beat", "beats"})
        assert "slow" not in own or attributes.tempo == "slow"


def test_the_reader_of_the_real_corpus_reads_it(corpus: Path) -> None:
    found = {}
    for split in ("train", "validation", "test"):
        clips, report = read_split(partial(list_magnatagatune, corpus), split, Rules(strict=True))
        found[split] = len(clips)
        assert report.bad == [] and all(clip.captions and clip.tags for clip in clips)
    assert found == {"train": 12, "validation": 1, "test": 2}
    # what validates is nothing that any number of training tracks comes to
    assert [drawn_as("train", index) for index in range(14)] == ["train"] * 12 + ["validation", "train"]


def test_bytes_depend_on_seed_split_and_index_alone_and_a_corpus_is_completed(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "x" / clip_path(SEED, "train", 3)).parent.mkdir(parents=True)
    write_clip(tmp_path / "x", SEED, "train", 3)
    path = corpus / clip_path(SEED, "train", 3)
    assert (tmp_path / "x" / clip_path(SEED, "train", 3)).read_bytes() == path.read_bytes()
    tables = [(corpus / name).read_bytes() for name in ("annotations_final.csv", "clip_info_final.csv")]
    (corpus / clip_path(SEED, "test", 0)).unlink()
    (corpus / "annotations_final.csv").unlink()
    kept = path.stat().st_mtime_ns
    write_magnatagatune(corpus, tracks=13, seed=SEED, test_tracks=2, workers=1)
    assert tables == [(corpus / name).read_bytes() for name in ("annotations_final.csv", "clip_info_final.csv")]
    assert (corpus / clip_path(SEED, "test", 0)).is_file() and path.stat().st_mtime_ns == kept
    with pytest.raises(MusiccmError, match="'seed': 6"):
        write_magnatagatune(corpus, tracks=13, seed=6)
