"""`musiccm generate`: levels, formats, seeds, and streams whose reader goes."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch

from musiccm import signals
from musiccm.audio.loudness import decibels, true_peak
from musiccm.cli import EXIT_BROKEN_PIPE, main
from musiccm.long_form import MusicStream
from musiccm.models.codec import LatentCodec
from musiccm.pipeline import Pipeline

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes whatever the model decodes so much louder."""
    decode = LatentCodec.decode

    def by(factor: float) -> None:
        monkeypatch.setattr(LatentCodec, "decode", lambda codec, z: factor * decode(codec, z))

    return by


def generate(model: Path, *arguments: str) -> int:
    return main(["generate", *arguments, "--model", str(model), "--device", "cpu", "--steps", "1"])


def read(path: str | io.BytesIO) -> np.ndarray:
    return soundfile.read(path, dtype="float64")[0]


def lufs(samples: np.ndarray) -> float:
    return pyloudnorm.Meter(16000).integrated_loudness(samples)


def test_music_leaves_at_one_loudness(model: Path, here: Path, gain: Any) -> None:
    gain(0.03)
    assert generate(model, "a tune", "--out", "a.wav") == 0
    assert generate(model, "a tune", "--out", "long.wav", "--seconds", "3") == 0
    assert generate(model, "a tune", "--out", "stream.wav", "--seconds", "8", "--stream") == 0
    assert lufs(read("a.wav")) == pytest.approx(-18, abs=0.3)
    assert lufs(read("long.wav")) == pytest.approx(-18, abs=0.3)
    assert lufs(read("stream.wav")[-64000:]) == pytest.approx(-18, abs=1) and len(read("stream.wav")) == 128000
    assert generate(model, "a tune", "--out", "peak.wav", "--level", "peak") == 0
    assert decibels(true_peak(torch.from_numpy(read("peak.wav")))) == pytest.approx(-1, abs=0.01)
    assert generate(model, "a tune", "--out", "none.wav", "--level", "none") == 0
    plain = Pipeline.from_pretrained(model)("a tune", 1)[0]
    np.testing.assert_allclose(read("none.wav"), plain, atol=1e-4)
    assert abs(lufs(plain.double().numpy()) + 18) > 5


def test_edits_keep_their_level(model: Path, here: Path, capsys: Capture) -> None:
    soundfile.write("tune.wav", 0.05 * np.sin(np.arange(20000) / 5), 16000)
    assert generate(model, "a tune", "--vary", "tune.wav", "--out", "default.wav") == 0
    assert generate(model, "a tune", "--vary", "tune.wav", "--level", "none", "--out", "none.wav") == 0
    assert np.array_equal(read("default.wav"), read("none.wav"))
    assert generate(model, "a tune", "--vary", "tune.wav", "--level", "loudness", "--out", "x.wav") == 2
    assert "--vary keeps the level of the clip" in capsys.readouterr().err and not Path("x.wav").exists()


@pytest.mark.parametrize("arguments", [[], ["--stream", "--seconds", "2"], ["--level", "none"]])
def test_near_silence_is_reported_in_one_sentence(
    model: Path, here: Path, capsys: Capture, gain: Any, arguments: list[str]
) -> None:
    gain(1e-6)
    assert generate(model, "a faint tune", "--out", "a.wav", *arguments) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "silence" in line]
    assert "'a faint tune': near silence (below -70 LUFS" in said and "another seed" in said
    assert np.abs(read("a.wav")).max() < 1e-3


def test_an_edit_whose_new_sound_is_near_silent_is_reported_too(
    model: Path, here: Path, capsys: Capture, gain: Any
) -> None:
    soundfile.write("tune.wav", 0.3 * np.sin(np.arange(20000) / 5), 16000)
    edits = (["--continue", "tune.wav"], ["--inpaint", "tune.wav", "--from", "0.4", "--to", "0.9"],
             ["--vary", "tune.wav"])
    for number, edit in enumerate(edits):
        assert generate(model, "a tune", *edit, "--out", f"{number}.wav") == 0
    assert "silence" not in capsys.readouterr().err
    gain(1e-6)
    for number, edit in enumerate(edits):
        assert generate(model, "a tune", *edit, "--out", f"{number}s.wav") == 0
        (said,) = [line for line in capsys.readouterr().err.splitlines() if "silence" in line]
        assert "the new sound in tune.wav: near silence (below -70 LUFS" in said
    assert np.abs(read("0s.wav")[:18000]).max() > 0.2 and np.abs(read("0s.wav")[20000:]).max() < 1e-3


@pytest.mark.parametrize(("suffix", "subtype"), [
    ("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III"),
])
def test_formats_are_written(
    model: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes], suffix: str, subtype: str
) -> None:
    assert generate(model, "a tune", "--out", f"a.{suffix}") == 0
    assert generate(model, "a tune", "--format", suffix) == generate(model, "a tune", "--out", "b", "--format", suffix)
    Path("p.csv").write_text("id,prompt\nx,a tune\n")
    assert generate(model, "--prompts", "p.csv", "--out", "clips", "--format", suffix, "--level", "peak") == 0
    capfdbinary.readouterr()
    assert generate(model, "a tune", "--out", "-", "--format", suffix) == 0
    Path("piped").write_bytes(capfdbinary.readouterr().out)
    assert generate(model, "a tune", "--out", "plain.wav", "--force") == 0
    expected = read("plain.wav")
    for name in (f"a.{suffix}", f"out.{suffix}", f"b.{suffix}", f"clips/x.{suffix}", "piped"):
        info = soundfile.info(name)
        assert (info.format, info.subtype) == ("WAV" if suffix == "wav" else info.format, subtype)
        assert info.samplerate == 16000 and info.frames == pytest.approx(len(expected), abs=1200)
    middle = slice(3000, 7000)
    assert np.corrcoef(read(f"a.{suffix}")[middle], expected[middle])[0, 1] > (0.8 if suffix == "mp3" else 0.9)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--out", "a.flac", "--format", "mp3"], "--out a.flac: --format says mp3; leave out one of the two"),
    (["--stream", "--format", "ogg"], "--format ogg: a stream is a wav"),
    (["--out", "a.m4a"], "expected a name that ends in .wav or .flac or .ogg or .mp3"),
    (["--seed", "1,2"], "--seed: expected one number, or one for each of the 1 prompts, found a list of 2"),
    (["--seed", "1,-2"], "--seed: expected a whole number from 0 on, found -2"),
    (["--seed", "1,x"], "--seed: expected a whole number, or several as in 3,5,7, found '1,x'"),
])
def test_refusals(model: Path, here: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    assert generate(model, "a tune", *arguments) == 2
    assert said in capsys.readouterr().err and not list(here.iterdir())


def test_several_seeds_are_one_a_prompt(model: Path, here: Path) -> None:
    assert generate(model, "a tune", "a song", "a tune", "--seed", "3,5,7", "--level", "none", "--out", "a.wav") == 0
    assert generate(model, "a tune", "--seed", "7", "--level", "none", "--out", "b.wav") == 0
    np.testing.assert_allclose(read("a_3.wav"), read("b.wav"), atol=2e-4)
    assert np.abs(read("a_1.wav") - read("a_3.wav")).max() > 1e-3
    assert generate(model, "a tune", "--at", "1.2", "a song", "--seed", "3,5", "--seconds", "2", "--out", "c.wav") == 0


def test_a_stream_ends_when_its_reader_goes(
    model: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe whose other end is closed after the first chunk; without --seconds the stream would go on for ever."""
    reading, writing = os.pipe()
    closed: list[MusicStream] = []
    close = MusicStream.close
    monkeypatch.setattr(MusicStream, "close", lambda stream: (closed.append(stream), close(stream))[1])

    class Output:
        buffer = os.fdopen(writing, "wb", buffering=0)

        def flush(self) -> None:
            pass

        def fileno(self) -> int:
            return writing

    advance = MusicStream.__next__

    def reader_goes(stream: MusicStream) -> torch.Tensor:
        chunk = advance(stream)
        if stream.calls > 6 and not closed:
            monkeypatch.setattr(MusicStream, "__next__", advance)
            os.close(reading)
        return chunk

    monkeypatch.setattr(MusicStream, "__next__", reader_goes)
    monkeypatch.setattr("sys.stdout", Output())
    assert generate(model, "a tune", "--stream", "--out", "-") == EXIT_BROKEN_PIPE
    said = capsys.readouterr().err
    assert "-: the reader has gone; it was given" in said and "Traceback" not in said and closed
    Output.buffer.close()


def test_a_stream_that_is_interrupted_ends_in_a_fade(
    model: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the level held back is written too, so that nothing that was made is lost."""
    made = 0
    push = LevelPush = __import__("musiccm.audio.level_stream", fromlist=["LevelStream"]).LevelStream.push

    def interrupted(stream: Any, chunk: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += len(chunk)
        out = push(stream, chunk)
        if made > 60000:
            monkeypatch.setattr("musiccm.long_form.stream.LevelStream.push", LevelPush)
            os.kill(os.getpid(), signals.SIGNALS[1])
        return out

    monkeypatch.setattr("musiccm.long_form.stream.LevelStream.push", interrupted)
    assert generate(model, "a tune", "--stream", "--out", "a.wav") == 143
    sound = read("a.wav")
    assert f"interrupted; the {len(sound) / 16000:.1f} s that were made are kept" in capsys.readouterr().out
    assert len(sound) >= made and abs(sound[-1]) < 1e-3 < np.abs(sound[-400:]).max()
    assert not math.isclose(np.abs(sound).max(), 0)
