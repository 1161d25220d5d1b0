"""AudioCaps' layout: both kinds of index, all names of files that people have, and everything that can be wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import soundfile
from small_corpus import RATE_HZ, sound

from musiccm.cli import main
from musiccm.config import load_experiment
from musiccm.data.corpora.audiocaps import list_audiocaps
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.data.corpora.registry import Corpora, parse_corpora
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError

# Videos as YouTube names them, with underscores, dashes and what looks like a start.
VIDEOS = ["7fmOlUlwoNg", "_xylo5_IiaM", "H-vTZh81q_3", "Y0RFKhbpFJA", "abcdefgh_30", "sVYTOURVsQ0"]
HEADER = "audiocap_id,youtube_id,start_time,caption\n"


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(sum(map(ord, name))), RATE_HZ)


def line(video, start, caption, folder="/data/deep/audioset/data"):
    return json.dumps({"dataset": "audiocaps", "location": f"{folder}/{video}_{start}.wav", "captions": caption})


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{number},{video},{start},{caption}\n" for number, video, start, caption in rows))


def read(root, split, **options):
    return read_split(partial(list_audiocaps, root, **options), split, Rules(max_bad_fraction=0.99, workers=1))


def test_tangos_lines_with_several_captions_of_a_clip(tmp_path):
    put(tmp_path, f"{VIDEOS[0]}_20.wav", f"valid/{VIDEOS[1]}_470.flac", f"elsewhere/{VIDEOS[2]}_0.wav")
    said = [(0, 20, "Ducks quack"), (1, 470, "A woman speaks"), (0, 20, "Water, and ducks"), (2, 0, "A hum"),
            (1, 470, "A woman speaks"), (0, 20, "A third")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/valid_audiocaps.json").write_text("\n".join(line(VIDEOS[v], *rest) for v, *rest in said) + "\n\n")
    clips, report = read(tmp_path, "validation")
    assert {clip.id: clip.captions for clip in clips} == {
        f"{VIDEOS[0]}_20": ["Ducks quack", "Water, and ducks", "A third"], f"{VIDEOS[1]}_470": ["A woman speaks"],
        f"{VIDEOS[2]}_0": ["A hum"]}
    assert report.bad == [] and report.tables["index"] == {"lines": 6, "clips": 3, "captions": 5}
    # a location that is there is believed, wherever it is
    put(tmp_path, f"dataset/audiocaps_test_set/{VIDEOS[3]}_30.wav", f"test/{VIDEOS[3]}_30.wav")
    (tmp_path / "test_audiocaps_subset.json").write_text(line(VIDEOS[3], 30, "x", "dataset/audiocaps_test_set") + "\n")
    (clip,) = read(tmp_path, "test")[0]
    assert clip.path == str(tmp_path / f"dataset/audiocaps_test_set/{VIDEOS[3]}_30.wav")


@pytest.mark.parametrize(("name", "found"), [
    ("{v}_30.wav", True), ("{v}_30.flac", True), ("Y{v}_30.mp3", True), ("train/{v}.wav", True), ("Y{v}.ogg", True),
    ("a/b/{v}_30_40.wav", True), ("{v}_30000_40000.flac", True), ("train/91139.ogg", True), ("{v}_31.wav", False),
    ("{v}_30_50.wav", False), ("x{v}.wav", False), ("9113.wav", False),
])
def test_the_names_that_people_give_the_files(tmp_path, name, found):
    video = VIDEOS[4]
    put(tmp_path, name.format(v=video), f"{VIDEOS[0]}_0.wav")
    table(tmp_path / "dataset/train.csv", [(91139, video, 30, "A dog barks"), (7, VIDEOS[0], 0, "A bird")])
    clips, report = read(tmp_path, "train", missing=0.5)
    assert [clip.id for clip in clips] == [f"{VIDEOS[0]}_0"] + [f"{video}_30"] * found
    assert report.unused == ({} if found else {"not_downloaded": 1}) and report.found == 2


def test_a_file_is_nobodys_where_it_could_be_two(tmp_path):
    videos = VIDEOS[:4]
    put(tmp_path, f"{videos[0]}.wav", f"train/{videos[1]}_0.wav", f"test/{videos[1]}_0.wav", f"a/{videos[2]}_0.wav",
        f"b/{videos[2]}_0.wav", f"{videos[3]}_0.wav")
    table(tmp_path / "train.csv", [(1, videos[0], 0, "x"), (2, videos[0], 10, "x"), (3, videos[1], 0, "in its split"),
                                   (4, videos[2], 0, "x"), (5, videos[3], 0, "x")])
    clips, report = read(tmp_path, "train")
    assert {clip.id: clip.path for clip in clips} == {
        f"{videos[1]}_0": str(tmp_path / f"train/{videos[1]}_0.wav"),
        f"{videos[3]}_0": str(tmp_path / f"{videos[3]}_0.wav")}
    assert {item.id: item.reason for item in report.bad} == dict.fromkeys(
        (f"{videos[0]}_0", f"{videos[0]}_10", f"{videos[2]}_0"), "ambiguous_name")


def test_what_is_missing_is_counted_and_too_much_of_it_refused(tmp_path):
    rows = [(n, f"{n:011d}", 30, f"sound {n}") for n in range(10)]
    table(tmp_path / "train.csv", [*rows, (100, f"{0:011d}", 30.0, "again")])
    put(tmp_path, *(f"audio/{video}_30.wav" for _, video, *_ in rows[:8]))
    (tmp_path / "audio" / f"{8:011d}_30.wma").write_bytes(b"\0")
    clips, report = read(tmp_path, "train", audio=str(tmp_path / "audio"))
    assert len(clips) == 8 and clips[0].captions == ["sound 0", "again"]
    assert report.unused == {"not_downloaded": 1} and report.tables["not_downloaded"] == {f"{9:011d}_30": 1}
    assert [(item.id, item.reason) for item in report.bad] == [(f"{8:011d}_30", "unsupported")]
    assert report.found == 10 and report.examined == 9 and "1 of 10 clips of train.csv" in " ".join(report.notes)
    written = json.loads((tmp_path / "report-train.json").read_text())
    assert written["not_downloaded"] == {f"{9:011d}_30": 1}
    with pytest.raises(MusiccmError, match=r"1 of 10 clips of train.csv have no audio.*more than the accepted 5%"):
        read(tmp_path, "train", missing=0.05)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MusiccmError, match="audio of none of the 10 clips of train.csv is here, first 00000000000_30"):
        read(tmp_path, "train", audio=str(tmp_path / "empty"))
    for wrong in (1.5, "x"):
        with pytest.raises(MusiccmError, match="missing: expected a share from 0 to 1"):
            read(tmp_path, "train", missing=wrong)


def test_broken_lines_are_listed_one_by_one(tmp_path):
    put(tmp_path, f"{VIDEOS[0]}_0.wav")
    table(tmp_path / "train.csv", [(1, VIDEOS[0], 0, "good"), (2, VIDEOS[0], "late", "x"), (3, "", 0, "x"),
                                   (4, "../up", 0, "x"), (5, VIDEOS[0], 0, "nan"), (1, VIDEOS[0], 0, "twice"),
                                   (6, VIDEOS[0], 0, "a,b")])
    clips, report = read(tmp_path, "train")
    assert [clip.captions for clip in clips] == [["good"]]
    assert report.counts == {"duplicate_id": 1, "malformed_row": 4, "no_caption": 1}
    lines = [line(VIDEOS[0], 0, "good"), "{half", "[1]", '{"captions": "x"}', line(VIDEOS[0], 0, None),
             '{"location": 7}']
    (tmp_path / "valid_audiocaps.json").write_text("\n".join(lines))
    clips, report = read(tmp_path, "validation")
    assert [clip.captions for clip in clips] == [["good"]]
    assert report.counts == {"malformed_row": 4, "no_caption": 1}
    (tmp_path / "test.csv").write_text("youtube_id,caption\nx,y\n")
    with pytest.raises(MusiccmError, match=r"test.csv: no column audiocap_id or start_time; expected audiocap_id"):
        read(tmp_path, "test")


def test_what_stands_where_a_sentence_should_is_said(tmp_path):
    put(tmp_path, f"{VIDEOS[0]}_0.wav")
    path = tmp_path / "train_audiocaps.json"
    path.write_text("\n".join([line(VIDEOS[0], 0, "good"), line(VIDEOS[0], 0, ["a", "b"]), line(VIDEOS[0], 0, 7),
                               json.dumps({"location": f"x/{VIDEOS[0]}_0.wav"})]))
    _, report = read(tmp_path, "train")
    assert [item.detail for item in report.bad] == [
        "line 2: expected a sentence under captions, found list ['a', 'b']",
        "line 3: expected a sentence under captions, found int 7",
        "line 4: expected a sentence under captions, found none"]
    path.write_text(json.dumps([json.loads(line(VIDEOS[0], 0, "good"))], indent=0))
    with pytest.raises(MusiccmError, match=r"train_audiocaps.json: expected a JSON object .* found one JSON array"):
        read(tmp_path, "train")
    path.write_text(line(VIDEOS[0], 0, None))
    with pytest.raises(MusiccmError, match=r"none that can be used among 1 lines; first line 1: expected a sentence"):
        read(tmp_path, "train")


def test_broken_lines_count_among_the_clips_that_lack_audio(tmp_path):
    put(tmp_path, f"{VIDEOS[0]}_0.wav")
    lines = [line(VIDEOS[0], 0, "good"), line(VIDEOS[1], 0, "away"), "{half", "{half"]
    (tmp_path / "train_audiocaps.json").write_text("\n".join(lines))
    _, report = read(tmp_path, "train", missing=0.25)
    assert "1 of 4 clips of train_audiocaps.json (2 of them lines that cannot be used)" in report.notes[0]
    with pytest.raises(MusiccmError, match=r"1 of 4 clips .*more than the accepted 24%"):
        read(tmp_path, "train", missing=0.24)


def test_the_check_says_what_is_left_out(tmp_path, capsys):
    root = tmp_path / "sounds"
    put(root, *(f"{video}_0.wav" for video in VIDEOS[:3]))
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps({"data": {"init_args": {"corpora": [
        {"layout": "audiocaps", "root": str(root), "missing": 0.5}]}}}))
    (root / "test.csv").write_text(HEADER + f"1,{VIDEOS[2]},0,a bird\n")
    (root / "train_audiocaps.json").write_text("\n".join([
        line(VIDEOS[0], 0, "good"), line(VIDEOS[1], 0, None), line(VIDEOS[3], 0, "away"), "{half"]))
    assert main(["prepare", "corpus", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "1 train clips, 1 test clips in audiocaps's layout" in said
    assert "left out: 1 malformed_row, 1 no_caption, 1 not_downloaded; first " in said
    assert "line 2: expected a sentence under captions, found none" in said and "\n  test" not in said
    put(root, f"a/{VIDEOS[4]}_0.wav", f"b/{VIDEOS[4]}_0.wav")
    (root / "train_audiocaps.json").write_text(line(VIDEOS[4], 0, "whose?"))
    assert main(["prepare", "corpus", "--config", str(config)]) == 2
    assert "no train clips; left out: 1 ambiguous_name" in capsys.readouterr().err


def test_which_index_is_meant_must_be_clear(tmp_path):
    with pytest.raises(MusiccmError, match="expected one index of the test split .*found none; name it under files"):
        read(tmp_path, "test")
    put(tmp_path, f"{VIDEOS[0]}_0.wav")
    table(tmp_path / "test.csv", [(1, VIDEOS[0], 0, "official")])
    (tmp_path / "test_audiocaps_subset.json").write_text(line(VIDEOS[0], 0, "one of five"))
    with pytest.raises(MusiccmError, match=r"found test.csv and test_audiocaps_subset.json; name it under files"):
        read(tmp_path, "test")
    files = {"test": "test_audiocaps_subset.json"}
    assert read(tmp_path, "test", files=files)[0][0].captions == ["one of five"]
    with pytest.raises(MusiccmError, match="files names no index of the train split; it has test"):
        read(tmp_path, "train", files=files)
    with pytest.raises(MusiccmError, match="split must be one of train, validation, test"):
        read(tmp_path, "valid")


def test_an_experiment_reads_it(tmp_path):
    for split, videos in (("train", VIDEOS[:3]), ("val", VIDEOS[3:5]), ("test", VIDEOS[5:])):
        table(tmp_path / f"{split}.csv", [(n, video, 0, f"sound {video}") for n, video in enumerate(videos)])
        put(tmp_path, *(f"{split}/{video}_0.flac" for video in videos))
    corpora = Corpora(parse_corpora([{"layout": "audiocaps", "root": str(tmp_path), "missing": 0.1}]), Rules(workers=1))
    ((train, validation),) = corpora.train()
    assert [[clip.id[:-2] for clip in part] for part in (train, validation)] == [
        sorted(VIDEOS[:3]), sorted(VIDEOS[3:5])]
    assert [clip.id for clip in corpora.test()[0].clips] == [f"{VIDEOS[5]}_0"]


def test_the_part_of_experiments_is_sound():
    """`experiments/tta/audiocaps.yaml`, which nothing runs before the audio is there."""
    data = load_experiment(Path(__file__).parents[2] / "experiments/tta/audiocaps.yaml")["data"]
    settings = data["init_args"]
    module = MusicDataModule(**settings)
    (spec,) = module.corpora.specs
    assert data["class_path"].endswith("MusicDataModule") and settings["clip_samples"] == round(10.24 * 16000)
    assert (spec.layout, set(spec.options["files"]), module.mixtures) == (
        "audiocaps", {"train", "validation", "test"}, 0.5)
