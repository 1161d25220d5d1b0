from __future__ import annotations

import csv
import json
from functools import partial

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpus import RATE_HZ, sound

from musiccm.data.corpora.audioldm import list_audioldm
from musiccm.data.corpora.manifest import list_manifest
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.errors import MusiccmError


def write(root, name, number, seconds=2.0, samples=None):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / name, sound(number, seconds) if samples is None else samples, RATE_HZ)


def spoilt_audio(root):
    """Audio files, sound and broken; name -> reason or None."""
    names = {f"music/good_{n}.{suffix}": None for n, suffix in enumerate(("mp3", "ogg", "flac", "wav") * 4)}
    for number, name in enumerate(names):
        write(root, name, number)
    for number, (suffix, share) in enumerate((("mp3", 0.4), ("ogg", 0.7), ("wav", 0.6), ("flac", 0.5)), 100):
        name = f"music/cut.{suffix}"
        write(root, name, number, 4.0)
        (root / name).write_bytes((root / name).read_bytes()[: int((root / name).stat().st_size * share)])
        names[name] = "truncated"
    write(root, "music/silent.ogg", 0, samples=np.zeros(32000))
    write(root, "music/short.mp3", 200, 0.5)
    (root / "music/zero.flac").write_bytes(b"")
    (root / "music/page.mp3").write_text("<!doctype html><title>404</title>")
    (root / "music/lies.wav").write_bytes((root / "music/good_0.mp3").read_bytes())
    (root / "music/twin.wav").write_bytes((root / "music/good_3.wav").read_bytes())
    write(root, "music/test.ogg", 300)
    (root / "music/leak.ogg").write_bytes((root / "music/test.ogg").read_bytes())
    return names | {"music/silent.ogg": "silent", "music/short.mp3": "too_short", "music/zero.flac": "zero_byte",
                    "music/page.mp3": "unreadable", "music/lies.wav": "mislabelled", "music/twin.wav": "duplicate",
                    "music/leak.ogg": "in_test", "music/gone.wav": "missing"}



@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_every_broken_item_is_listed_and_nothing_else(tmp_path, form):
    names = spoilt_audio(tmp_path)
    # two broken files of one stem would share an id
    rows = [{"path": name, "caption": f"about {name}", "id": name} for name in names]
    rows += [{"path": "/music/abs.wav", "caption": "x", "id": "abs"}, {"path": "../up.wav", "caption": "x", "id": "up"},
             {"path": "music/good_1.ogg", "caption": "", "id": "wordless"},
             {"path": "music/good_2.flac", "caption": "more words", "id": ""},  # a second caption, not a second clip
             {"path": "music/other.wav", "caption": "x", "id": "music/good_0.mp3"}]
    expected = {name: why for name, why in names.items() if why} | {
        "abs": "outside_root", "up": "outside_root", "wordless": "no_caption", "music/good_0.mp3": "duplicate_id"}
    if form == "csv":
        with (tmp_path / "train.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "path", "caption"])
            writer.writeheader()
            writer.writerows(rows)
            stream.write('too,many,cells,here\r\nx,"never closed,y\r\n')
        (tmp_path / "test.csv").write_text("path,caption\nmusic/test.ogg,a test\n")
        broken = [len(rows) + 2, len(rows) + 3]
    else:
        lines = [*map(json.dumps, rows), "{half", "[1, 2]", '{"caption": "no path"}', "", '{"path": 7}']
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
        row = {"path": "music/test.ogg", "caption": ["a test", "one"]}
        (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
        broken = [len(rows) + n for n in (1, 2, 3, 5)]
    expected |= {f"train.{form}:{line}": "malformed_row" for line in broken}
    clips, report = read_split(partial(list_manifest, tmp_path), "train", Rules(max_bad_fraction=0.9))
    assert {item.id: item.reason for item in report.bad} == expected and len(report.bad) == len(expected)
    assert {clip.id for clip in clips} == {name for name, why in names.items() if not why}
    by_id = {clip.id: clip for clip in clips}
    assert by_id["music/good_2.flac"].captions == ["about music/good_2.flac", "more words"]
    written = json.loads((tmp_path / "report-train.json").read_text())
    assert {item["id"]: item["reason"] for item in written["bad"]} == expected
    test, report = read_split(partial(list_manifest, tmp_path), "test", Rules())
    assert [clip.id for clip in test] == ["music/test"] and report.bad == []


def test_further_columns_are_kept(tmp_path):
    write(tmp_path, "a b/one.wav", 1)
    (tmp_path / "train.tsv").write_text(
        "path\tcaption\ttags\tbpm\tkey\na b/one.wav\tslow, \"quoted\" piano\tpiano; calm,slow\t80\t\n")
    (clip,) = list_manifest(tmp_path, "train").entries
    assert (clip.id, clip.captions, clip.tags) == ("a b/one", ['slow, "quoted" piano'], ["piano", "calm", "slow"])
    assert clip.attributes == {"bpm": "80"}
    (tmp_path / "list.jsonl").write_text(json.dumps({
        "path": "a b/one.wav", "caption": ["x", " ", "y"], "tags": ["p", 3], "bpm": 80, "who": {"name": "z"},
        "no": None}))
    (clip,) = list_manifest(tmp_path, "validation", {"validation": "list.jsonl"}).entries
    assert clip.captions == ["x", "y"] and clip.tags == ["p"]
    assert clip.attributes == {"bpm": "80", "who": '{"name": "z"}'}


JSON = st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=6),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
ROOMY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ROOMY
@given(st.lists(st.one_of(JSON, st.fixed_dictionaries({"path": JSON | st.just("a.wav"), "caption": JSON},
                                                      optional={"tags": JSON, "id": JSON})), max_size=6))
def test_any_json_lines_are_entries_or_listed(tmp_path, values):
    (tmp_path / "train.jsonl").write_text("\n".join(["{}", *map(json.dumps, values)]), encoding="utf-8")
    listing = list_manifest(tmp_path, "train")
    merged = 1 + len(values) - len(listing.entries) - len(listing.bad)
    paths = [v["path"].strip() for v in values if isinstance(v, dict) and isinstance(v.get("path"), str)]
    assert 0 <= merged <= max(0, len(paths) - len(set(paths)) + len(paths))
    for entry in listing.entries:
        assert entry.captions and all(isinstance(word, str) and word.strip() for word in entry.captions + entry.tags)
        assert entry.path.is_relative_to(tmp_path) and all(isinstance(v, str) for v in entry.attributes.values())
    assert len({entry.id for entry in listing.entries}) == len(listing.entries)


@ROOMY
@given(JSON)
def test_any_json_is_an_audioldm_index_or_one_message(tmp_path, document):
    (tmp_path / "dataset_root.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(MusiccmError, match="dataset_root"):
        list_audioldm(tmp_path, "train")


def audioldm(root, items, split="train"):
    """As AudioLDM's repository has it: paths from the folder above data/."""
    metadata = root / "data" / "dataset" / "metadata"
    (metadata / "mine").mkdir(parents=True, exist_ok=True)
    (metadata / "mine" / f"{split}.json").write_text(json.dumps({"data": items}))
    index = {"mine": "data/dataset/mine", "comments": {}, "metadata": {"path": {"mine": {
        "train": "data/dataset/metadata/mine/train.json", "val": "data/dataset/metadata/mine/val.json",
        "test": "data/dataset/metadata/mine/test.json"}}}}
    (metadata / "dataset_root.json").write_text(json.dumps(index))
    return metadata


def test_audioldm_manifests(tmp_path):
    folder = tmp_path / "data" / "dataset" / "mine"
    write(folder, "x/one.wav", 1)
    write(folder, "two.mp3", 2)
    items = [{"wav": "x/one.wav", "seg_label": "seg/one.npy", "labels": "/m/04rlf,/m/05r5c", "caption": "a piano"},
             {"wav": "two.mp3", "caption": "two things", "labels": ["a", "b"]},
             {"wav": "two.mp3", "caption": "said again", "labels": []},
             {"wav": str(folder / "two.mp3"), "caption": "absolute"}, {"wav": "gone.wav", "caption": "gone"},
             {"caption": "no wav"}, "text", {"wav": "x/one2.wav"}]
    metadata = audioldm(tmp_path, items)
    audioldm(tmp_path, [{"wav": "two.mp3", "caption": "t"}], "test")
    rules = Rules(max_bad_fraction=0.99)
    clips, report = read_split(partial(list_audioldm, metadata), "train", rules)
    assert [(clip.id, clip.captions, clip.tags) for clip in clips] == [("x/one", ["a piano"], ["/m/04rlf", "/m/05r5c"])]
    assert {item.id: item.reason for item in report.bad} == {
        "two": "in_test", str(folder / "two"): "outside_root", "gone": "missing", "train.json:6": "malformed_row",
        "train.json:7": "malformed_row", "x/one2": "no_caption"}
    assert list_audioldm(metadata / "dataset_root.json", "train", "mine").entries[1].captions == ["two things",
                                                                                               "said again"]
    with pytest.raises(MusiccmError, match="val.json"):
        list_audioldm(metadata, "validation")
    with pytest.raises(MusiccmError, match="'yours'"):
        list_audioldm(metadata, "train", "yours")
    (metadata / "mine" / "train.json").write_text('{"data": 3}')
    with pytest.raises(MusiccmError, match="a list under data"):
        list_audioldm(metadata, "train")


def test_audioset_labels_become_their_names(tmp_path):
    write(tmp_path / "data" / "dataset" / "mine", "one.wav", 1)
    metadata = audioldm(tmp_path, [{"wav": "one.wav", "caption": "x", "labels": "/m/04rlf, /t/dd00134,/m/none"},
                                   {"wav": "two.wav", "caption": "y", "labels": ["/m/05r5c", 3]}])
    index = metadata / "dataset_root.json"
    document = json.loads(index.read_text())
    document["metadata"]["path"]["mine"]["class_label_indices"] = "data/dataset/metadata/class_labels_indices.csv"
    index.write_text(json.dumps(document))
    listing = list_audioldm(metadata, "train")
    assert listing.entries[0].tags == ["/m/04rlf", "/t/dd00134", "/m/none"]
    assert len(listing.notes) == 1 and "class_labels_indices.csv" in listing.notes[0]
    table = metadata / "class_labels_indices.csv"
    table.write_text('index,mid,display_name\n137,/m/04rlf,"Music"\n300,/t/dd00134,"Car passing by, fast"\n'
                     '153,/m/05r5c,"Piano"\n')
    listing = list_audioldm(metadata, "train")
    assert [entry.tags for entry in listing.entries] == [["Music", "Car passing by, fast", "/m/none"], ["Piano"]]
    assert listing.notes == []
    table.write_text("id,name\n1,x\n")
    with pytest.raises(MusiccmError, match="no column display_name or mid"):
        list_audioldm(metadata, "train")


@pytest.mark.parametrize(("files", "options", "message"), [
    ({}, None, r"expected one of train\.csv, train\.tsv, train\.jsonl, found none"),
    ({"train.csv": "path,caption\n", "train.tsv": "x"}, None, r"train\.csv and train\.tsv"),
    ({"train.csv": "file,caption\n"}, None, "no column path"),
    ({"train.csv": ""}, None, "is empty"),
    ({"a.csv": "path,caption\n"}, {"test": "a.csv"}, "no manifest of the train split"),
    ({"a.xls": "x"}, {"train": "a.xls"}, r"ends in \.csv"),
])
def test_what_is_no_manifest_is_refused(tmp_path, files, options, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(MusiccmError, match=message):
        list_manifest(tmp_path, "train", options)
