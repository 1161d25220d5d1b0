from __future__ import annotations

import json
import os

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpus import RATE_HZ, sound, write_clip, write_corpus

from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.corpora.labels import BadLabel, read_label
from musiccm.errors import MusiccmError


def test_clips_come_sorted_with_words_and_facts(tmp_path):
    write_corpus(tmp_path, train=5)
    write_clip(tmp_path, "train", "aaa", sound(7, 1.5, 44100), ".mp3", 44100)
    write_clip(tmp_path, "train", "bbb", np.stack([sound(8), sound(9)], 1), ".wav", label={"text": "one sentence"})
    clips, report = read_audiostock(tmp_path, "train")
    assert [clip.id for clip in clips] == ["aaa", "bbb", *(f"train_{n:03d}" for n in range(5))]
    assert clips[1].captions == ["one sentence"] and clips[1].tags == []
    assert clips[3].captions[0] == "flute number 1" and clips[3].tags == ["flute", "music"]
    assert clips[3].attributes == {"instrument": "flute", "drums": "rock"}
    assert clips[0].audio.sample_rate_hz == 44100 and clips[1].audio.channels == 2
    assert report.found == report.used == 7 and report.bad == []
    assert report.converted == {"mixed_to_mono": 1, "rate_16000_hz": 6, "rate_44100_hz": 1}


def spoil(root):
    """One bad item of each kind; id -> reason."""
    write_clip(root, "train", "silent", np.zeros(RATE_HZ * 2, np.float32))
    write_clip(root, "train", "short", sound(1, 0.3))
    write_clip(root, "train", "nan", np.where(np.arange(32000) == 5, np.nan, sound(2)), ".wav")
    write_clip(root, "train", "garbage", sound(3))
    (root / "train" / "garbage.flac").write_bytes(b"RIFF of nothing")
    write_clip(root, "train", "zero", sound(3))
    (root / "train" / "zero.flac").write_bytes(b"")
    write_clip(root, "train", "notjson", sound(4), label="{text: oops")
    write_clip(root, "train", "nocaption", sound(5), label={"text": ["", "  "]})
    write_clip(root, "train", "list", sound(5), label="[1, 2]")
    write_clip(root, "train", "nolabel", sound(6))
    (root / "label" / "nolabel.json").unlink()
    return {"silent": "silent", "short": "too_short", "nan": "nan", "garbage": "unreadable", "zero": "zero_byte",
            "notjson": "not_json", "nocaption": "no_caption", "list": "not_json", "nolabel": "no_label"}


def test_bad_items_are_counted_named_and_left_out(tmp_path):
    write_corpus(tmp_path, train=6)
    expected = spoil(tmp_path)
    for _ in range(2):  # the second time from the remembered scan
        clips, report = read_audiostock(tmp_path, "train", max_bad_fraction=0.9)
        assert {item.id: item.reason for item in report.bad} == expected
        assert len(clips) == 6 and report.found == 15 and report.counts["not_json"] == 2
    written = json.loads((tmp_path / "report-train.json").read_text())
    assert {item["id"]: item["reason"] for item in written["bad"]} == expected
    assert (written["found"], written["used"], written["counts"]) == (15, 6, report.counts)
    assert {item["path"] for item in written["bad"]} >= {str(tmp_path / "label" / "notjson.json")}


def test_too_much_bad_is_refused_and_the_report_remains(tmp_path):
    write_corpus(tmp_path, train=19)
    write_clip(tmp_path, "train", "silent", np.zeros(32000, np.float32))
    assert len(read_audiostock(tmp_path, "train")[0]) == 19  # exactly 5 %
    write_clip(tmp_path, "train", "silent2", np.zeros(32000, np.float32))
    with pytest.raises(MusiccmError, match=r"2 silent.*silent\.flac.*report-train\.json"):
        read_audiostock(tmp_path, "train")
    assert json.loads((tmp_path / "report-train.json").read_text())["counts"] == {"silent": 2}


def test_the_remembered_scan_is_used_and_notices_changes(tmp_path, monkeypatch):
    write_corpus(tmp_path, train=4)
    first, _ = read_audiostock(tmp_path, "train")
    decoded = []
    monkeypatch.setattr("musiccm.data.corpora.scan.scan_audio", lambda path, *_: decoded.append(path.stem) or 1 / 0)
    assert read_audiostock(tmp_path, "train")[0] == first and decoded == []
    monkeypatch.undo()
    soundfile.write(tmp_path / "train" / "train_002.flac", sound(99, 3.0), RATE_HZ)
    assert read_audiostock(tmp_path, "train")[0][2].audio.frames == 48000
    second, _ = read_audiostock(tmp_path, "train")
    scan = tmp_path / ".scan-train.json"
    whole = json.loads(scan.read_text())
    unnamed = {key: value for key, value in whole.items() if key != "files"}
    for spoilt in ("{ half", json.dumps({**whole, "files": None}), json.dumps(unnamed)):
        scan.write_text(spoilt)
        assert read_audiostock(tmp_path, "train")[0] == second
        assert json.loads(scan.read_text()) == whole


@pytest.mark.parametrize(
    ("ruin", "message"),
    [
        (lambda root: None, "no such corpus folder"),
        (lambda root: root.mkdir(), "train: no such folder"),
        (lambda root: [(root / name).mkdir(parents=True) for name in ("train", "label")], "no audio found"),
        (lambda root: [write_clip(root, "train", "x", sound(0), s) for s in (".wav", ".flac")], "two audio files"),
    ],
)
def test_broken_layouts(tmp_path, ruin, message):
    ruin(tmp_path / "c")
    with pytest.raises(MusiccmError, match=message):
        read_audiostock(tmp_path / "c", "train")


def test_unknown_split(tmp_path):
    with pytest.raises(MusiccmError, match="split"):
        read_audiostock(tmp_path, "dev")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_corpus(tmp_path):
    write_corpus(tmp_path, train=3)
    tmp_path.chmod(0o500)
    try:
        assert len(read_audiostock(tmp_path, "train")[0]) == 3
    finally:
        tmp_path.chmod(0o700)


def test_the_same_audio_twice_or_in_test_too_is_left_out_of_training(tmp_path):
    write_corpus(tmp_path, train=30, test=3)
    samples = (sound(500) * 32767).astype(np.int16)
    write_clip(tmp_path, "train", "x_first", samples)
    write_clip(tmp_path, "train", "x_twin", samples, ".wav")
    soundfile.write(tmp_path / "train" / "x_twin.wav", samples, RATE_HZ, subtype="PCM_16")
    leak = tmp_path / "train" / "y_leak.flac"
    leak.write_bytes((tmp_path / "test" / "test_001.flac").read_bytes())
    (tmp_path / "label" / "y_leak.json").write_text('{"text": ["x"]}')
    clips, report = read_audiostock(tmp_path, "train", max_bad_fraction=0.1)
    assert {item.id: item.reason for item in report.bad} == {"x_twin": "duplicate", "y_leak": "in_test"}
    assert "x_first.flac" in report.bad[0].detail and "test_001.flac" in report.bad[1].detail
    assert len(clips) == 31
    assert read_audiostock(tmp_path, "test")[1].bad == []


def test_strict_stops_at_the_first(tmp_path):
    write_corpus(tmp_path, train=30)
    write_clip(tmp_path, "train", "a_short", sound(1, 0.2))
    write_clip(tmp_path, "train", "b_silent", np.zeros(32000, np.float32))
    assert len(read_audiostock(tmp_path, "train", max_bad_fraction=0.1)[0]) == 30
    with pytest.raises(MusiccmError, match=r"a_short\.flac: too_short .*strict"):
        read_audiostock(tmp_path, "train", max_bad_fraction=0.1, strict=True)
    assert len(json.loads((tmp_path / "report-train.json").read_text())["bad"]) == 1


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=6),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
LABEL = st.fixed_dictionaries({}, optional={"text": JSON, "tag": JSON, "original_data": JSON | st.fixed_dictionaries(
    {"attributes": JSON})})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(JSON.map(json.dumps), LABEL.map(json.dumps), st.text(max_size=30), st.just("[" * 100_000)))
def test_any_label_file_is_words_or_one_reason(tmp_path, content):
    path = tmp_path / "label.json"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    try:
        captions, tags, attributes = read_label(path)
    except BadLabel as error:
        assert error.reason in ("not_json", "no_caption") and str(path) in str(error)
        return
    said = json.loads(content)["text"]
    wanted = [said] if isinstance(said, str) else said
    assert captions and all(word == word.strip() != "" and word.encode() for word in captions + tags)
    assert [word for word in wanted if isinstance(word, str) and word.strip() in captions]
    assert all(isinstance(value, str) for value in attributes.values())
