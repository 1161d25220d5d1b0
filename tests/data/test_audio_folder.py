"""Folders of audio from anywhere: what is read, what is left out and said."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musiccm.audio import BadAudio
from musiccm.data import audio_folder
from musiccm.data.audio_folder import clip_batches, read_audio_folder, read_captions
from musiccm.errors import MusiccmError


def tone(path: Path, seconds: float = 1.5, rate_hz: int = 16000, channels: int = 1, level: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    samples = np.stack([level * np.sin(2 * np.pi * 220 * (n + 1) * time) + 0.1 for n in range(channels)], 1)
    soundfile.write(path, samples.astype(np.float32), rate_hz)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.flac", 2.0, 44100, 2)
    tone(tmp_path / "deep/c.ogg")
    tone(tmp_path / "short.wav", 0.2)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, "FLOAT")
    (tmp_path / "zero.mp3").write_bytes(b"")
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_every_unusable_file_is_listed_with_its_reason_and_nothing_else(folder: Path) -> None:
    found = read_audio_folder(folder, min_duration_s=1.0)
    assert [clip.id for clip in found.clips] == ["a", "b", "deep/c"]
    assert {item.id: item.reason for item in found.left_out} == {
        "short": "too_short", "silent": "silent", "nan": "nan", "zero": "zero_byte", "noise": "unreadable"}
    assert found.rates_hz == {16000: 2, 44100: 1}
    assert str(found) == f"{folder}: 3 of 8 audio files can be used; left out: 1 nan, 1 silent, 1 too_short, " \
                         "1 unreadable, 1 zero_byte"


def test_batches_hold_one_length_and_rate_and_every_clip_once(folder: Path) -> None:
    for n in range(5):
        tone(folder / f"more{n}.wav")
    found = read_audio_folder(folder, min_duration_s=1.0)
    batches = list(clip_batches(found.clips, batch_size=4))
    assert sorted(clip_id for batch in batches for clip_id in batch.ids) == [clip.id for clip in found.clips]
    assert all(len(batch.ids) <= 4 for batch in batches)
    whole = {clip_id: (row, batch.sample_rate_hz) for batch in batches
             for clip_id, row in zip(batch.ids, batch.waveform_BS, strict=True)}
    samples, rate_hz = soundfile.read(folder / "b.flac", dtype="float32")
    mono = samples.mean(axis=1)
    assert whole["b"][1] == rate_hz
    torch.testing.assert_close(whole["b"][0], torch.from_numpy(mono - mono.mean()))
    first = next(b for b in clip_batches(found.clips, channel="first", duration_s=0.5) if "b" in b.ids)
    cut = samples[: round(0.5 * rate_hz), 0]
    torch.testing.assert_close(first.waveform_BS[0], torch.from_numpy(cut - cut.mean()))


def test_batches_are_decoded_ahead_and_handed_on_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(9):
        tone(tmp_path / f"{n}.wav", level=0.1 + 0.05 * n)
    clips = read_audio_folder(tmp_path).clips
    read, reading, threads = audio_folder.read_mixes, threading.Semaphore(0), set()
    wholes: list[tuple[str, threading.Thread]] = []

    def watched(*arguments: Any) -> Any:
        threads.add(threading.current_thread())
        reading.release()
        return read(*arguments)

    monkeypatch.setattr(audio_folder, "read_mixes", watched)
    batches = clip_batches(clips, 2, whole=lambda clip, mean_S: wholes.append((clip.id, threading.current_thread())))
    assert next(batches).ids == ["0", "1"]
    for _ in range(6):  # three batches were begun, of which one was asked for; else this would not end
        assert reading.acquire(timeout=60)
    assert [name for name, _ in wholes] == ["0", "1"], "what was not asked for is not handed on"
    assert [name for batch in batches for name in batch.ids] == list("2345678")
    assert wholes == [(str(n), threading.main_thread()) for n in range(9)]
    assert threading.main_thread() not in threads and not any(thread.is_alive() for thread in threads)
    soundfile.write(tmp_path / "4.wav", np.zeros(0), 16000)
    with pytest.raises(BadAudio, match=r"4\.wav"):
        list(clip_batches(clips, 2))


@pytest.mark.parametrize(("prepare", "message"), [
    (lambda root: None, "no such folder"),
    (lambda root: root.mkdir(), "no audio that can be used; expected files ending in"),
    (lambda root: (tone(root / "x.wav"), tone(root / "x.flac")), "several suffixes, first x"),
])
def test_folders_that_cannot_be_used(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "folder")
    with pytest.raises(MusiccmError, match=message):
        read_audio_folder(tmp_path / "folder")


def test_captions_of_all_forms_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"a": "calm", "deep/b": "fast, loud"}))
    (tmp_path / "c.csv").write_text('path,caption\na.wav,calm\ndeep/b.flac,"fast, loud"\n')
    (tmp_path / "c.tsv").write_text("id\tcaption\tyear\na\tcalm\t1990\ndeep/b\tfast, loud\t1991\n")
    (tmp_path / "d.csv").write_text("caption_id,path,prompt\na,x.mp3,calm\ndeep/b,x.mp3,\"fast, loud\"\n")
    for name in ("c.json", "c.csv", "c.tsv", "d.csv"):
        assert read_captions(tmp_path / name) == {"a": "calm", "deep/b": "fast, loud"}


@pytest.mark.parametrize(("name", "text", "message"), [
    ("c.json", "[1]", "JSON object"), ("c.json", '{"a": ""}', "a: expected a caption"),
    ("c.csv", "file,caption\n", "columns caption or prompt, and id"),
    ("c.csv", "id,caption\na,x,y\n", "cannot be read"),
    ("c.csv", "id,caption\na,x\na,y\n", "two different captions"), ("c.txt", "x", "as .json, .csv or .tsv"),
])
def test_captions_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MusiccmError, match=message):
        read_captions(tmp_path / name)


def test_a_folder_of_mp3s_without_a_frame_count_is_heard_to_the_end(tmp_path):
    lengths = {}
    for n, seconds in enumerate((2.0, 3.5)):
        level_S = np.linspace(0.3, 0.001, round(seconds * 44100))
        samples = np.random.default_rng(n).normal(size=len(level_S)) * level_S
        path = tmp_path / f"{n}.mp3"
        soundfile.write(path, samples, 44100, bitrate_mode="VARIABLE", compression_level=0.3)
        lengths[str(n)] = len(samples)
        content = path.read_bytes()
        second = content.index(content[:2], 4)  # the first frame holds the count
        path.write_bytes(content[second:])
    found = read_audio_folder(tmp_path, min_duration_s=1.0)
    assert not found.left_out
    heard = {name: batch.waveform_BS[row] for batch in clip_batches(found.clips) for row, name in enumerate(batch.ids)}
    for name, length in lengths.items():
        assert 0 <= len(heard[name]) - length < 2 * 1152 + 1105  # encoders pad both ends
        assert heard[name][:4410].std() > 10 * heard[name][length - 4410 : length].std() > 0
