"""MTG-Jamendo's layout: splits, words, releases of the audio, and everything that can be wrong with it."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
from small_jamendo import SECONDS, TRACKS, path_of, row, write_jamendo, write_table
from small_mtat import write_mp3

from musiccm.data.corpora.jamendo import list_jamendo
from musiccm.data.corpora.jamendo_captions import read_released
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.data.corpora.tag_captions import sentences_of, settled
from musiccm.data.corpora.text_tables import read_table
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError

LOOSE = Rules(max_bad_fraction=0.99)


def read(root, split, rules=None, **options):
    return read_split(partial(list_jamendo, root, **options), split, rules or Rules())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jamendo(tmp_path_factory.mktemp("jamendo"))


def test_the_published_splits_and_words_from_the_tags(corpus):
    for split in ("train", "validation", "test"):
        clips, report = read(corpus, split)
        assert {clip.id: clip.tags for clip in clips} == {
            f"track_{number:07d}": tags for number, (part, tags) in TRACKS.items() if part == split}
        assert report.bad == [] and all(abs(clip.audio.duration_s - SECONDS) < 0.5 for clip in clips)
    said = {clip.id: clip.captions for clip in read(corpus, "train")[0]}
    for words, number in (("background music", 948), ("pop rock", 950), ("electric guitar", 950), ("happy", 950),
                          ("calm", 11839), ("soft", 11839), ("piano", 1085700), ("ambient", 1085700)):
        assert words in said[f"track_{number:07d}"][0]
    assert not any("---" in text or "poprock" in text for texts in said.values() for text in texts)
    assert said == {clip.id: clip.captions for clip in read(corpus, "train")[0]}
    voice = next(clip for clip in read(corpus, "test")[0] if clip.id == "track_0000215")
    assert re.search("vocals|singing|voice", voice.captions[0])


def test_tags_of_one_track_do_not_contradict_each_other():
    things = [("genre", "rock"), ("genre", "hard rock"), ("mood", "happy"), ("tempo", "slow"), ("mood", "sad")]
    assert settled(things).said == (("genre", "hard rock"), ("tempo", "slow"))
    assert sentences_of(settled([("mood", "happy"), ("mood", "sad")]), "x") == []


@pytest.mark.parametrize("release", ["low", "instrumental"])
def test_other_releases_of_the_audio_are_found_by_their_names(tmp_path, release):
    root = write_jamendo(tmp_path, {"low": ".low", "instrumental": "_instrumental"}[release])
    clips, report = read(root, "train")
    assert len(clips) == 4 and report.bad == [] and report.tables["audio"] == {release: 4}
    if release == "instrumental":  # stems may be cut out of the track, whose length the table states
        write_mp3(root / path_of(950, "_instrumental"), 950, 1.5)
        assert len(read(root, "train")[0]) == 4
    write_mp3(root / path_of(948), 948)
    with pytest.raises(MusiccmError, match=f"more than one release lies there .full, {release}.; say which by audio"):
        read(root, "train")
    assert len(read(root, "train", audio=release)[0]) == 4
    with pytest.raises(MusiccmError, match="audio: expected one of full, low, instrumental, found 'high'"):
        read(root, "train", audio="high")


def test_what_was_not_downloaded_is_counted_and_what_is_lost_is_bad(tmp_path):
    root = write_jamendo(tmp_path, more={1048: ("train", ["genre---folk"])})  # 48/948.mp3 and 48/1048.mp3
    (root / path_of(1048)).unlink()
    (root / path_of(950)).unlink()
    (root / "50").rmdir()
    clips, report = read(root, "train", LOOSE)
    assert {clip.id for clip in clips} == {"track_0000948", "track_0011839", "track_1085700"}
    assert report.unused == {"not_downloaded": 1} and report.found == 5
    assert [(item.id, item.reason) for item in report.bad] == [("track_0001048", "missing")]
    assert "1 of 4 folders of audio are not there, with 1 tracks" in " ".join(report.notes)
    with pytest.raises(MusiccmError, match="more than the accepted 5%"):
        read(root, "train")
    write_jamendo(tmp_path / "empty", audio=False)
    with pytest.raises(MusiccmError, match="none of the folders 00 to 99 that the tables name; unpack the audio here"):
        read(tmp_path / "empty", "train")


def test_broken_rows_are_listed_one_by_one(tmp_path):
    root = write_jamendo(tmp_path)
    good = [row(number, tags) for number, (part, tags) in TRACKS.items() if part == "train"]
    bad = {
        "malformed_row": [row(1, [], "1.mp3"), row(2, [], "02/2.flac"), row(3, ["genre---rock"], duration="long"),
                          row(4, ["rock"]), row(5, ["genre---"]), ["track_0000006", "artist_1"],
                          ["", "a", "b", "07/7.mp3", 1]],
        "outside_root": [row(8, [], "../8.mp3"), row(9, [], "/etc/9.mp3")],
        "no_path": [row(10, [], ""), row(11, [], "nan")],
        "duplicate_id": [row(948, ["genre---rock"])],
    }
    write_table(root / "data/splits/split-0/autotagging-train.tsv",
                [*good, *(line for lines in bad.values() for line in lines)])
    clips, report = read(root, "train", LOOSE)
    assert len(clips) == 4
    assert report.counts == {reason: len(rows) for reason, rows in bad.items()}
    write_mp3(root / path_of(950), 950, SECONDS - 1.5)  # shorter than DURATION says
    assert {i.reason for i in read(root, "train", LOOSE)[1].bad if i.id == "track_0000950"} == {"truncated"}


def test_tags_of_another_table_credits_and_a_track_without_words(tmp_path):
    root = write_jamendo(tmp_path, more={77: ("train", [])})
    write_table(root / "data/raw_30s.tsv", [row(948, ["genre---darkwave", "mood/theme---dream"])])
    (root / "data/raw.meta.tsv").write_text(
        "TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL\n"
        "track_0000948\tartist_000087\talbum_000149\tOne\tSome Artist\tAn Album\t2004-12-28\thttp://x/track/948\n")
    clips, report = read(root, "train", tags="raw_30s.tsv")
    by_id = {clip.id: clip for clip in clips}
    assert report.unused == {"untagged": 1}
    assert by_id["track_0000948"].tags == ["genre---darkwave", "mood/theme---dream"]
    assert "dreamy" in by_id["track_0000948"].captions[0] and "darkwave" in by_id["track_0000948"].captions[0]
    assert by_id["track_0000948"].source == {"title": "One", "artist": "Some Artist", "album": "An Album",
                                             "url": "http://x/track/948"}
    assert any("4 tracks are not in raw_30s.tsv, and keep the tags of the split" in note for note in report.notes)
    assert report.tables["tags"]["genre---darkwave"] == 1


def released(folder, name, items):
    (folder / name).write_text(json.dumps(items), encoding="utf-8")
    return name


def test_released_captions_take_the_place_of_words_from_tags(tmp_path):
    root = write_jamendo(tmp_path)
    one = released(root / "data", "jamendo_qwen.json", [
        {"path": "48/948.mp3", "caption": "A calm piece.\n It has a piano."},
        {"path": "50/950.mp3", "caption": "Rock."},
        {"path": "99/199.mp3", "caption": "Of a track that is not in the split."}])
    two = released(root / "data", "other.json", [{"path": "./48/948_instrumental.mp3", "caption": "Another."}])
    clips, report = read(root, "train", captions=[one, two])
    assert {clip.id: clip.captions for clip in clips} == {
        "track_0000948": ["A calm piece. It has a piano.", "Another."], "track_0000950": ["Rock."]}
    assert report.unused == {"no_released_caption": 2} and clips[1].tags == TRACKS[950][1]


@pytest.mark.parametrize(("items", "found"), [
    ({"48/948.mp3": "Rock."}, "found dict"), ([], "found an empty list"),
    ([{"path": "48/948.mp3"}], r"entry 1: expected released captions.*found \{'path'"),
    ([{"path": "48/948.mp3", "caption": " "}], "entry 1"), ([{"path": "948", "caption": "Rock."}], "entry 1"),
    ([{"path": "48/948_segment_1.mp3", "caption": "Rock."}], "entry 1"),
    ([{"path": "48/948.mp3", "caption": c} for c in ("Rock.", "Pop.")], "entry 2: two different captions"),
])
def test_captions_of_another_form_are_refused(tmp_path, items, found):
    with pytest.raises(MusiccmError, match=found):
        read_released(tmp_path / released(tmp_path, "x.json", items))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(MusiccmError, match=r"x\.json: expected released captions.*it is no JSON"):
        read_released(tmp_path / "x.json")
    with pytest.raises(MusiccmError, match=r"nowhere\.json"):
        read_released(tmp_path / "nowhere.json")


def test_folders_and_tables_that_are_not_there_are_named(corpus, tmp_path):
    for options, said in (
        ({"splits": 7}, r"splits/split-7/autotagging-train\.tsv: no such table; expected the folder data/"),
        ({"subset": "autotagging_genre"}, r"autotagging_genre-train\.tsv: no such table"),
        ({"tables": str(tmp_path)}, r"autotagging-train\.tsv: no such table"), ({"tags": "x.tsv"}, r"x\.tsv: cannot"),
    ):
        with pytest.raises(MusiccmError, match=said):
            list_jamendo(corpus, "train", **options)
    with pytest.raises(MusiccmError, match="split must be one of train, validation, test, found 'valid'"):
        list_jamendo(corpus, "valid")
    with pytest.raises(MusiccmError, match="no such corpus folder; expected MTG-Jamendo"):
        list_jamendo(tmp_path / "nowhere", "train")
    write_jamendo(tmp_path)
    table = tmp_path / "data/splits/split-0/autotagging-train.tsv"
    table.write_text(table.read_text().replace("TRACK_ID", "ID"))
    with pytest.raises(MusiccmError, match="expected the columns TRACK_ID, ARTIST_ID.*found ID, ARTIST_ID"):
        list_jamendo(tmp_path, "train")


def test_an_experiment_reads_it(corpus):
    data = MusicDataModule(corpora=[{"layout": "jamendo", "root": str(corpus), "splits": 0}], clip_samples=16000,
                           batch_size=2)
    data.setup("fit")
    assert {clip.id for clip in data.val_clips} == {"track_1009600"}
    (first, *_) = list(data.train_dataloader())
    assert len(first) == 2 and first.waveform_BS.shape == (2, 16000)


def test_open_ended_tables_keep_their_rules(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"a\tb\tc\r\n1\t2\r\n1\t2\t3\t4\t5\r\n1\r\n1\t\xe9\t3\r\n1\t2\t\xe9\t4\r\n")
    table = read_table(tmp_path / "t.tsv", "\t", names=("b",), open_ended=True)
    assert [cells for _, cells in table.rows] == [["1", "2"], ["1", "2", "3", "4", "5"], ["1", "\udce9", "3"]]
    assert [item.detail for item in table.bad] == ["line 4: 1 cells, expected 2 or more", "line 6: not UTF-8"]
