from __future__ import annotations

import json
import pickle
import random
from functools import partial

import numpy as np
import pytest
import soundfile
from small_corpus import RATE_HZ, sound
from small_mtat import INFO, annotation, info, path_of, quoted, write_mp3, write_mtat, write_tables

from musiccm.data.corpora.magnatagatune import list_magnatagatune
from musiccm.data.corpora.reading import Rules, read_split
from musiccm.data.corpora.tag_draw import draw_even, tag_counts, top_tags
from musiccm.data.corpora.tag_words import ALL_TAGS, TOP_50
from musiccm.errors import MusiccmError

TREE = {
    2: ("f", ["no vocals", "guitar"]), 6: ("0", ["female vocal", "slow"]), 7: ("b", ["rock", "drums"]),
    10: ("c", ["opera"]), 11: ("d", ["harp"]), 14: ("e", ["flute", "no voice"]), 19: ("a", ["techno", "fast", "beat"]),
    25: ("7", []), 29: ("4", ["lol"]), 31: ("1", ["sitar", "indian"]), 33: ("f", []), 35: ("c", ["piano"]),
}


def read(root, split, rules=None, **options):
    return read_split(partial(list_magnatagatune, root, **options), split, rules or Rules(max_bad_fraction=0.99))


def test_folders_are_the_split_and_words_come_from_tags(tmp_path):
    write_mtat(tmp_path, TREE)
    ids = {}
    for split in ("train", "validation", "test"):
        clips, report = read(tmp_path, split)
        assert report.bad == []
        ids[split] = {clip.id for clip in clips}
        for clip in clips:
            assert sorted(clip.tags) == sorted(TREE[int(clip.id)][1]) and clip.attributes == {} and clip.captions
            assert clip.source["title"] == f'Aria "da {clip.id}"' and clip.source["artist"] == "Some Artist"
            assert clip.audio.sample_rate_hz == RATE_HZ and abs(clip.audio.duration_s - 3) < 0.2
    assert ids == {"train": {"6", "7", "19", "31"}, "validation": {"10", "35"}, "test": {"2", "11", "14"}}
    clips, report = read(tmp_path, "train")
    assert report.unused == {"untagged": 2} and report.found == 6 and report.used == report.examined == 4
    assert "2 untagged" in str(report)
    assert clips == read(tmp_path, "train")[0]
    by_id = {clip.id: clip for clip in read(tmp_path, "test")[0]}
    assert all("guitar" in text and "voice" not in text for text in by_id["2"].captions)


def plant(root):
    """A tree with one of each thing that can be wrong with a training clip; id -> reason."""
    rng = random.Random(1)
    tree = {n: ("0123456789ab"[n % 12], rng.sample(TOP_50, 3)) for n in range(100, 130)}
    tree |= {200: ("c", ["harp"]), 300: ("d", ["rock"]), 301: ("e", ["pop"])}
    write_mtat(root, tree)
    rows = [annotation(n, path_of(n, folder), tags) for n, (folder, tags) in tree.items()]
    infos = [info(n, path_of(n, folder)) for n, (folder, _) in tree.items()]
    expected = {}

    def bad(number, reason, make, folder="3", audio=True):
        path = path_of(number, folder)
        if audio:
            write_mp3(root / path, number)
        make(root / path)
        rows.append(annotation(number, path, ["guitar"]))
        infos.append(info(number, path))
        expected[str(number)] = reason

    # the three broken clips of the real download have 0 bytes
    bad(35644, "zero_byte", lambda path: path.write_bytes(b""), "6")
    bad(55753, "zero_byte", lambda path: path.write_bytes(b""), "8")
    bad(57881, "zero_byte", lambda path: path.write_bytes(b""), "9")
    bad(400, "truncated", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 11]))
    bad(401, "truncated", lambda path: write_mp3(path, 401, 1.5))  # whole, but the name says 3 s
    bad(402, "missing", lambda path: None, audio=False)
    bad(403, "unreadable", lambda path: path.write_text("<html>Not Found</html>"))
    bad(404, "mislabelled", lambda path: soundfile.write(path, sound(404), RATE_HZ, format="OGG"))
    bad(405, "silent", lambda path: soundfile.write(path, np.zeros(32000), RATE_HZ))
    bad(406, "duplicate", lambda path: path.write_bytes((root / path_of(105, tree[105][0])).read_bytes()))
    bad(407, "in_test", lambda path: path.write_bytes((root / path_of(300, "d")).read_bytes()))
    outside = [(501, "/etc/passwd.mp3"), (502, "../elsewhere/x-0-2.mp3"), (503, "0/../../x.mp3")]
    for number, path, reason in [(500, "", "no_path"), *((n, path, "outside_root") for n, path in outside)]:
        rows.append(annotation(number, path, ["guitar"]))
        infos.append(info(number, ""))
        expected[str(number)] = reason
    rows.append(annotation(105, path_of(105, "2"), ["harp"]))  # an id that is taken
    expected["105"] = "duplicate_id"
    for broken in (quoted(["900", "0", "1"]), annotation(901, "z/a-0-2.mp3", []), annotation(902, "0/a/b.mp3", []),
                   annotation(903, path_of(903, "0"), []).replace('"0"', '"2"', 1), annotation("", path_of(4, "1"), []),
                   '"904\t"0"'):
        rows.append(broken)
        expected[f"annotations_final.csv:{len(rows) + 1}"] = "malformed_row"
    # the path of a clip may stand in one of the two files only
    rows.append(annotation(600, "", ["harp"]))
    infos.append(info(600, path_of(600, "5")))
    write_mp3(root / path_of(600, "5"), 600)
    infos += ["", quoted([601, "too few"])]
    write_tables(root, rows, infos)
    return expected, {str(n) for n, (folder, _) in tree.items() if folder in "0123456789ab"} | {"600"}


def test_every_broken_item_is_listed_and_nothing_else(tmp_path):
    expected, sound_ids = plant(tmp_path)
    for _ in range(2):
        clips, report = read(tmp_path, "train")
        assert {item.id: item.reason for item in report.bad} == expected
        assert {clip.id for clip in clips} == sound_ids
        assert report.found == len(expected) + len(sound_ids)
        assert any(note.startswith("1 rows of clip_info_final.csv cannot be read, first line") for note in report.notes)
    written = json.loads((tmp_path / "report-train.json").read_text())
    assert {item["id"]: item["reason"] for item in written["bad"]} == expected
    assert written["counts"]["zero_byte"] == 3 and all(item["detail"] for item in written["bad"])
    with pytest.raises(MusiccmError, match=r"more than the accepted 5%.*report-train\.json"):
        read(tmp_path, "train", Rules())
    with pytest.raises(MusiccmError, match="annotations_final.csv: malformed_row.*strict"):
        read(tmp_path, "train", Rules(strict=True))
    clips, report = read(tmp_path, "test")  # what has no folder could belong here; nothing else does
    assert {clip.id for clip in clips} == {"300", "301"}
    assert {item.reason for item in report.bad} == {"malformed_row", "no_path", "outside_root"}


def published(folder, lists, kind):
    folder.mkdir()
    for name, numbers in lists.items():
        lines = [f"{row}\t{path_of(n, TREE[n][0]) if n in TREE else 'c/gone-0-2.mp3'}" for row, n in enumerate(numbers)]
        if kind == ".npy":
            np.save(folder / f"{name}.npy", np.array(lines))
        else:
            (folder / f"{name}{kind}").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", [".npy", ".tsv"])
def test_published_lists_name_clips_by_path_and_not_by_their_row_numbers(tmp_path, kind):
    write_mtat(tmp_path, TREE)
    lists = published(tmp_path / "split", {"train": [6, 31, 999], "valid": [10], "test": [11, 14]}, kind)
    clips, report = read(tmp_path, "train", lists=lists)
    assert {clip.id for clip in clips} == {"6", "31"}
    assert report.unused == {"not_in_list": 4}
    assert [(item.id, item.reason) for item in report.bad] == [("c/gone-0-2", "no_label")]
    assert {clip.id for clip in read(tmp_path, "validation", lists=lists)[0]} == {"10"}
    assert {clip.id for clip in read(tmp_path, "test", lists=lists)[0]} == {"11", "14"}


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_pickles_are_refused_and_never_run(tmp_path):
    write_mtat(tmp_path, TREE)
    (tmp_path / "jp").mkdir()
    (tmp_path / "jp" / "train_list_pub.cP").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MusiccmError, match=r"train_list_pub\.cP: a Python pickle.*train\.npy"):
        list_magnatagatune(tmp_path, "train", lists=tmp_path / "jp")
    np.save(tmp_path / "jp" / "train.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(MusiccmError, match=r"train\.npy: refused: it holds Python objects"):
        list_magnatagatune(tmp_path, "train", lists=tmp_path / "jp")
    np.save(tmp_path / "jp" / "train.npy", np.zeros((3, 2)))
    with pytest.raises(MusiccmError, match=r"train\.npy: expected a list of strings"):
        list_magnatagatune(tmp_path, "train", lists=tmp_path / "jp")
    (tmp_path / "jp" / "valid.tsv").write_text("no tab here\n")
    with pytest.raises(MusiccmError, match=r"valid\.tsv: line 1: expected id"):
        list_magnatagatune(tmp_path, "validation", lists=tmp_path / "jp")
    with pytest.raises(MusiccmError, match="no list of the test split|pickle"):
        list_magnatagatune(tmp_path, "test", lists=tmp_path / "jp")


@pytest.mark.parametrize(("ruin", "message"), [
    (lambda root: None, "no such corpus folder"),
    (lambda root: root.mkdir(), "none of the folders 0 to f"),
    (lambda root: (root / "0").mkdir(parents=True), r"annotations_final\.csv: cannot be read"),
    (lambda root: [(root / "0").mkdir(parents=True), (root / "annotations_final.csv").write_text("")], "is empty"),
    (lambda root: [(root / "0").mkdir(parents=True), (root / "annotations_final.csv").write_text("clip_id,guitar\n")],
     "separated by tabs"),
    (lambda root: [write_mtat(root, TREE), (root / "clip_info_final.csv").write_text("clip_id\ttitle\n")], "mp3_path"),
])
def test_what_is_not_magnatagatune_is_refused(tmp_path, ruin, message):
    ruin(tmp_path / "c")
    with pytest.raises(MusiccmError, match=message):
        list_magnatagatune(tmp_path / "c", "train")
    with pytest.raises(MusiccmError, match="split must be one of train, validation, test"):
        list_magnatagatune(tmp_path / "c", "dev")


def zipf_tags(count):
    rng = np.random.default_rng(0)
    rates = 0.2 / np.arange(1, len(ALL_TAGS) + 1) ** 0.7
    names = [*TOP_50, *(tag for tag in ALL_TAGS if tag not in TOP_50)]
    return {str(n): [tag for tag, hit in zip(names, rng.random(188) < rates, strict=True) if hit] for n in range(count)}


def test_the_draw_is_even_deterministic_and_of_the_size_asked_for():
    clips = zipf_tags(8000)
    counts = tag_counts(clips.values(), ALL_TAGS)
    top = top_tags(counts)
    assert len(top) == 50 and all(counts[tag] <= min(counts[t] for t in top) for tag in set(ALL_TAGS) - set(top))
    drawn = draw_even(clips, top, 1500, 3)
    assert len(drawn) == 1500 and drawn <= set(clips) and all(set(clips[name]) & set(top) for name in drawn)
    assert drawn == draw_even(dict(reversed(clips.items())), top, 1500, 3) != draw_even(clips, top, 1500, 4)
    before = np.array(list(tag_counts(clips.values(), top).values()))
    after = np.array(list(tag_counts((clips[name] for name in drawn), top).values()))
    # Only tags that nearly every clip has stay above the others.
    assert before.max() > 10 * before.min() and after.max() < 6 * after.min()
    assert np.quantile(before, 0.8) > 1.8 * before.min() and np.quantile(after, 0.8) < 1.2 * after.min()
    more = draw_even({**clips, "new": [top[0]]}, top, 1500, 3)
    assert len(more & drawn) > 1400  # one clip more hardly changes the draw
    with pytest.raises(MusiccmError, match="8001 clips asked for"):
        draw_even(clips, top, 8001, 3)


def test_the_draw_takes_training_clips_and_shows_the_tags_before_and_after(tmp_path):
    write_mtat(tmp_path, TREE)
    clips, report = read(tmp_path, "train", draw=3, draw_seed=1)
    assert len(clips) == 3 and report.unused == {"untagged": 2, "not_drawn": 1} and report.examined == 3
    written = json.loads((tmp_path / "report-train.json").read_text())
    assert sum(written["tags_before_draw"].values()) == 9 > sum(written["tags_after_draw"].values())
    assert written["tags_before_draw"].keys() == written["tags_after_draw"].keys()
    assert "3 clips drawn evenly" in str(report)
    assert len(read(tmp_path, "test", draw=3)[0]) == 3 and read(tmp_path, "train", draw=3, draw_seed=1)[0] == clips


def test_the_top_50_is_checked_against_the_published_one(tmp_path):
    write_mtat(tmp_path, {6: TREE[6]})
    assert any("share 2 with the published top 50" in note for note in read(tmp_path, "train")[1].notes)
    rows = [annotation(n, path_of(n, "0"), [tag]) for n, tag in enumerate(TOP_50)]
    write_tables(tmp_path, rows, [])
    assert list_magnatagatune(tmp_path, "train").notes == []
    header = quoted(["clip_id", "guitar", "kazoo", "mp3_path"])
    (tmp_path / "annotations_final.csv").write_text(f"{header}\n{quoted([6, 1, 0, path_of(6, '0')])}\n")
    (tmp_path / "clip_info_final.csv").unlink()
    notes = "; ".join(list_magnatagatune(tmp_path, "train").notes)
    assert "2 tags, 1 of them among the 188" in notes and "clip_info_final.csv is not there" in notes
    assert INFO[-1] == "mp3_path"
