"""One name in several spellings, texts with a byte order mark, and what other programs leave in tables."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from small_corpus import sound, write_clip, write_corpus
from small_mtat import annotation, info, path_of, write_mp3, write_mtat, write_tables

from musiccm.audio import write_audio
from musiccm.data.audio_folder import captions_of, read_captions
from musiccm.data.corpora.audioldm import list_audioldm
from musiccm.data.corpora.audiostock import list_audiostock, read_audiostock
from musiccm.data.corpora.labels import read_label
from musiccm.data.corpora.magnatagatune import list_magnatagatune
from musiccm.data.corpora.manifest import list_manifest
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.data.corpora.split_lists import read_split_list
from musiccm.data.corpora.text_tables import read_table
from musiccm.data.names import AmbiguousName, FileNames, pair_names
from musiccm.data.vocabulary import TagVocabulary
from musiccm.errors import MusiccmError

COMPOSED, APART = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
# One name in three forms: the Angstrom sign is neither.
SIGN, RING = "\u212b", "\u00c5"
BOM = b"\xef\xbb\xbf"


def test_the_exact_spelling_wins_and_what_is_not_clear_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / f"d{APART}").mkdir()
    for name in (f"{COMPOSED}.wav", f"{APART}.wav", f"d{APART}/x{APART}.wav", "a\\b.wav", f"{RING}.wav",
                 unicodedata.normalize("NFD", RING) + ".wav"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.wav").touch()
    (tmp_path / os.fsdecode(b"\xe9.wav")).touch()
    names = FileNames(tmp_path)
    for name in (f"{COMPOSED}.wav", f"{APART}.wav", "a\\b.wav", "a/c.wav"):
        assert names.find(name) == tmp_path / name
    assert names.find(f"d{COMPOSED}/x{COMPOSED}.wav") == tmp_path / f"d{APART}/x{APART}.wav"
    assert names.find("a\\c.wav") == tmp_path / "a/c.wav"
    assert names.find(f"d{COMPOSED}\\x{COMPOSED}.wav") == tmp_path / f"d{APART}/x{APART}.wav"
    assert names.find("\\xe9.wav") == tmp_path / os.fsdecode(b"\xe9.wav")
    assert names.find("none/x.wav") == tmp_path / "none/x.wav"
    with pytest.raises(AmbiguousName, match="no such file, and 2 whose names differ"):
        names.find(f"{SIGN}.wav")


def test_names_are_paired_once_each() -> None:
    found = pair_names([COMPOSED, f"b{APART}", SIGN, "x\\y"], [COMPOSED, APART, f"b{COMPOSED}", RING, "A\u030a", "x/y"])
    assert found.pairs == {COMPOSED: COMPOSED, f"b{APART}": f"b{COMPOSED}", "x\\y": "x/y"}
    assert found.ambiguous == [SIGN]
    assert pair_names([SIGN, "A\u030a"], [RING]) == ({}, sorted([SIGN, "A\u030a"]))
    assert pair_names(["A\u030a", RING], [RING]) == ({RING: RING}, [])  # the exact one has it


def test_labels_of_another_form_are_found(tmp_path: Path) -> None:
    write_corpus(tmp_path, train=2, test=1)
    for number, name in enumerate((f"a{APART}", "both", SIGN)):
        write_clip(tmp_path, "train", name, sound(50 + number))
    (tmp_path / "label" / f"a{APART}.json").rename(tmp_path / "label" / f"a{COMPOSED}.json")
    for name in (RING, "A\u030a"):
        (tmp_path / "label" / f"{name}.json").write_text('{"text": "x"}')
    (tmp_path / "label" / f"{SIGN}.json").unlink()
    # two files of one name with one label: it belongs to the one that is spelled so
    for name in (f"c{APART}", f"c{COMPOSED}"):
        write_clip(tmp_path, "train", name, sound(60 + len(name)))
    (tmp_path / "label" / f"c{APART}.json").unlink()
    clips, report = read_audiostock(tmp_path, "train", max_bad_fraction=1)
    assert {item.id: item.reason for item in report.bad} == {SIGN: "ambiguous_name", f"c{APART}": "no_label"}
    assert {clip.id: clip.captions[0] for clip in clips} == {
        f"a{APART}": f"music a{APART}", "both": "music both", f"c{COMPOSED}": f"music c{COMPOSED}",
        "train_000": "piano number 0", "train_001": "flute number 1"}
    assert report.notes == ["2 labels are of no audio in train/ or test/, first label/A\u030a.json"]


def test_paths_of_manifests(tmp_path: Path) -> None:
    latin = os.fsdecode(b"caf\xe9")
    for name in (f"music/{APART}.wav", "music/b.wav", f"{latin}.wav", "music/A\u030a.wav", f"music/{RING}.wav"):
        write_audio(tmp_path / name, sound(1), 16000)
    (tmp_path / "train.csv").write_bytes(
        BOM + f",path,caption,Unnamed\n0,music/{COMPOSED}.wav,one,\n1,music\\b.wav,two,\n".encode()
        + b"2,caf\xe9.wav,three,"
        + f"\n3,music/{SIGN}.wav,four,\n4,music/{APART}.wav,five,\n5,music/b.wav,nan,\n6,nan,six,\n".encode()
        + b"7,caf\xea.wav,seven,\n8,music/b.wav,eig\xe9ht,\n9,..\\up.wav,nine,\n")
    listing = list_manifest(tmp_path, "train")
    assert {entry.id: (entry.path, entry.captions) for entry in listing.entries} == {
        f"music/{APART}": (tmp_path / f"music/{APART}.wav", ["one", "five"]),
        "music/b": (tmp_path / "music/b.wav", ["two"]), "caf\\xe9": (tmp_path / f"{latin}.wav", ["three"])}
    assert all(entry.attributes == {} for entry in listing.entries)
    assert {(item.id, item.reason) for item in listing.bad} == {
        (f"music/{SIGN}", "ambiguous_name"), ("music/b", "no_caption"), ("train.csv:8", "malformed_row"),
        ("train.csv:9", "malformed_row"), ("train.csv:10", "malformed_row"), ("..\\up", "outside_root")}
    details = " ".join(item.detail for item in listing.bad)
    assert "'nan', the word for a missing value" in details and "not UTF-8, and no file has this name" in details
    assert listing.notes == ["train.csv: the first column has no name, and is ignored as pandas' index"]
    # as a program writes it: the text of the name, escaped
    (tmp_path / "test.jsonl").write_text(json.dumps({"path": "caf\\xe9.wav", "caption": float("nan")}) + "\n"
                                         + json.dumps({"path": "caf\\xe9.wav", "caption": "x", "tags": ["nan", "a"]}))
    listing = list_manifest(tmp_path, "test")
    assert [(entry.path.name, entry.tags) for entry in listing.entries] == [(f"{latin}.wav", ["a"])]
    assert [item.reason for item in listing.bad] == ["no_caption"]


def test_an_audioldm_index_from_windows(tmp_path: Path) -> None:
    write_audio(tmp_path / f"mine/{APART}/a.wav", sound(1), 16000)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "train.json").write_bytes(BOM + json.dumps({"data": [
        {"wav": f"{COMPOSED}\\a.wav", "caption": "x", "labels": "nan"}]}, ensure_ascii=False).encode())
    (tmp_path / "dataset_root.json").write_bytes(BOM + json.dumps(
        {"mine": "mine", "metadata": {"path": {"mine": {"train": "meta\\train.json"}}}}).encode())
    (entry,) = list_audioldm(tmp_path, "train").entries
    assert entry.path == tmp_path / f"mine/{APART}/a.wav" and entry.tags == []


def test_magnatagatune_names_and_lists(tmp_path: Path) -> None:
    write_mtat(tmp_path, {})
    paths = {n: path_of(n, "3").replace("a_title", title) for n, title in enumerate(
        [f"{APART}", "windows", "listed", "unnamed"], 1)}
    for number, path in paths.items():
        write_mp3(tmp_path / path, number)
    rows = [annotation(1, paths[1].replace(APART, COMPOSED), ["rock"]),
            annotation(2, paths[2].replace("/", "\\"), ["rock"]), annotation(3, "nan", ["rock"])]  # its path: clip_info
    write_tables(tmp_path, rows, [info(n, path) for n, path in paths.items()])
    (tmp_path / "3" / "cover.jpg").touch()
    listing = list_magnatagatune(tmp_path, "train")
    assert {entry.id: entry.path for entry in listing.entries} == {str(n): tmp_path / paths[n] for n in (1, 2, 3)}
    assert f"1 audio files are named by no usable row of annotations_final.csv, first {paths[4]}" in listing.notes
    assert any("1 entries of the folders were passed over" in note and "cover.jpg" in note for note in listing.notes)
    (tmp_path / "lists").mkdir()
    stems = [paths[1][:-4], paths[2][:-4].replace("/", "\\")]
    (tmp_path / "lists" / "train.tsv").write_bytes(BOM + "".join(f"{n}\t{s}\n" for n, s in enumerate(stems)).encode())
    assert read_split_list(tmp_path / "lists", "train") == {paths[1][:-4], paths[2][:-4]}
    listing = list_magnatagatune(tmp_path, "train", tmp_path / "lists")
    assert {entry.id for entry in listing.entries} == {"1", "2"} and listing.unused == {"not_in_list": 1}


def test_broken_credits_cost_the_credits_alone(tmp_path: Path) -> None:
    tree = {n: ("3", ["rock"]) for n in range(1, 5)} | {9: ("d", ["pop"])}
    write_mtat(tmp_path, tree)
    infos = [info(n, path_of(n, folder)) for n, (folder, _) in tree.items()]
    infos[1] = infos[1].replace('""', '\\"')  # "say \"hi\"", as C writes it
    content = ("\n".join(["\t".join(f'"{c}"' for c in ("clip_id", "track_number", "title", "artist", "album", "url",
                                                       "segmentStart", "segmentEnd", "original_url", "mp3_path")),
                          *infos]) + "\n").encode().replace(b"Some Artist", b"Beyonc\xe9", 1)
    (tmp_path / "clip_info_final.csv").write_bytes(content)
    clips, report = read_split(lambda split: list_magnatagatune(tmp_path, split), "train", Rules(max_bad_fraction=0))
    assert {clip.id: clip.source.get("artist") for clip in clips} == {
        "1": None, "2": None, "3": "Some Artist", "4": "Some Artist"}
    assert report.bad == [] and any(note.startswith("2 rows of clip_info_final.csv cannot be read, first line")
                                    for note in report.notes)


def test_a_quote_left_open_costs_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b,c\n1,2,3\n"open,2,3\n4,5,6\nx",7\n8,9,10\n')
    table = read_table(tmp_path / "t.csv")
    assert [cells for _, cells in table.rows] == [["1", "2", "3"], ["4", "5", "6"], ["8", "9", "10"]]
    assert [item.id for item in table.bad] == ["t.csv:3", "t.csv:5"]


def test_a_byte_order_mark_costs_nothing(tmp_path: Path) -> None:
    label, vocabulary, utf16 = (tmp_path / name for name in ("l.json", "v.json", "u.json"))
    label.write_bytes(BOM + b'{"text": ["a calm piano"], "tag": ["piano", "nan"]}')
    vocabulary.write_bytes(BOM + b'["a", "b"]')
    utf16.write_bytes('{"text": "x"}'.encode("utf-16"))
    assert read_label(label) == (["a calm piano"], ["piano"], {})
    assert TagVocabulary.load(vocabulary).names == ("a", "b")
    for read in (read_label, TagVocabulary.load, read_captions, lambda path: read_table(path)):
        with pytest.raises(MusiccmError, match=r"u.json: the text is UTF-16.*save it again as UTF-8"):
            read(utf16)
    label.write_text('{"text": ["nan"]}')
    with pytest.raises(MusiccmError, match="'nan', the word for a missing value"):
        read_label(label)
    (tmp_path / "c.csv").write_text("id,caption\na,nan\n")
    with pytest.raises(MusiccmError, match="a: expected a caption, found 'nan', the word"):
        read_captions(tmp_path / "c.csv")


def test_captions_go_to_clips_in_any_spelling() -> None:
    found, names = captions_of([f"x/{APART}", "b", "none"], {f"x\\{COMPOSED}": "one", "b": "two", "c": "three"})
    assert found == {f"x/{APART}": "one", "b": "two"} and names.ambiguous == []


def test_nothing_in_a_train_folder_is_passed_over_in_silence(tmp_path: Path) -> None:
    write_corpus(tmp_path, train=4, test=1)
    write_clip(tmp_path, "train", "LOUD", sound(70), ".WAV")
    (tmp_path / "train" / "deep").mkdir()
    write_audio(tmp_path / "train" / "deep" / "er.wav", sound(71), 16000)
    for name in ("a.wma", "b.APE", "c.aiff"):
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "train" / "notes.txt").touch()
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "test", target_is_directory=True)
    (tmp_path / "train" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "train" / "circle.wav").symlink_to(tmp_path / "train" / "circle.wav")
    os.mkfifo(tmp_path / "train" / "pipe.wav")
    (tmp_path / "label" / "old.json").write_text("{}")
    listing = list_audiostock(tmp_path, "train")
    assert [entry.id for entry in listing.entries] == ["LOUD", *(f"train_00{n}" for n in range(4))]
    assert {item.id: item.reason for item in listing.bad} == {
        "deep/er": "in_subfolder", "a": "unsupported", "b": "unsupported", "c": "unsupported",
        "linked": "link_not_followed", "gone": "broken_link", "circle": "broken_link", "pipe": "not_a_file"}
    assert listing.notes == [f"train/: 1 entries are no audio by their names, first {tmp_path}/train/notes.txt",
                             "1 labels are of no audio in train/ or test/, first label/old.json"]
    assert read_audiostock(tmp_path, "train", max_bad_fraction=1)[1].found == 13
