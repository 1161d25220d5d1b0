"""A musician's first hour: what she can ask for, a clip, one that she cannot have, and her own file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile

from musiccm.cli import main

Capture = pytest.CaptureFixture[str]


def make(*arguments: str) -> int:
    """`musiccm generate` with the embedded student, in one step."""
    return main(["generate", *arguments, "--steps", "1", "--device", "cpu"])


def own_recording(path: str, seconds: float = 3.0) -> np.ndarray:
    """Two chords in stereo, 44.1 kHz and 24 bits, as whole numbers."""
    time_S = np.arange(round(seconds * 44100)) / 44100
    notes = [np.sin(2 * np.pi * hz * time_S) for hz in (220.0, 277.2, 329.6, 440.0)]
    tune_SC = 0.12 * np.stack([notes[0] + notes[1] + notes[2], notes[0] + notes[2] + notes[3]], axis=1)
    soundfile.write(path, tune_SC * (0.6 + 0.4 * np.cos(2 * np.pi * 2 * time_S))[:, None], 44100, subtype="PCM_24")
    return soundfile.read(path, dtype="int32")[0]


def loudness(path: str) -> float:
    samples, rate_hz = soundfile.read(path)
    return float(pyloudnorm.Meter(rate_hz).integrated_loudness(samples))


def test_the_first_hour_of_a_musician(here: Path, capsys: Capture) -> None:
    # She asks what the model knows.
    assert main(["words", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert "flute" in known["groups"]["instruments"] and "saxophone" not in known["words"]

    # She asks for a flute, and for a saxophone, of which she is warned, with what is nearest to it.
    assert make("a calm flute melody", "saxophone jazz", "--seed", "3,7") == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "'saxophone jazz'" in warning and "no training caption says 'saxophone' or 'jazz'" in warning
    assert sum(example in warning for example in known["examples"]) == 3

    # Both are as loud as each other, whatever the model made of them.
    assert loudness("out_1.wav") == pytest.approx(-18, abs=0.5) == loudness("out_2.wav")

    # The first one comes again by its seed, on its own.
    assert make("a calm flute melody", "--seed", "3", "--out", "again.wav") == 0
    first, again = (soundfile.read(name, dtype="int16")[0].astype(int) for name in ("out_1.wav", "again.wav"))
    assert np.abs(first - again).max() <= 2 and np.abs(first).max() > 1000
    assert "warning" not in capsys.readouterr().out

    # Her own recording goes on, and every sample of it is still there.
    mine = own_recording("mine.flac")
    assert make("a calm flute melody", "--continue", "mine.flac", "--seconds", "4.5", "--out", "longer.flac") == 0
    said = capsys.readouterr().out
    longer, rate_hz = soundfile.read("longer.flac", dtype="int32")
    assert rate_hz == 44100 and longer.shape == (round(4.5 * 44100), 2)
    kept = len(mine) - 4410
    assert np.array_equal(longer[:kept], mine[:kept]) and np.abs(longer[len(mine):]).max() > 0.01 * 2**31
    assert "what lies from 0.00 to 2.90 s is kept to the sample, what lies from 3.00 to 4.50 s is new" in said

    # A cough in the middle of it is mended; all else is left alone.
    assert make("a calm flute melody", "--inpaint", "mine.flac", "--from", "1", "--to", "1.5", "--out", "m.flac") == 0
    mended = soundfile.read("m.flac", dtype="int32")[0]
    changed = np.flatnonzero((mended != mine).any(axis=1)) / 44100
    assert mended.shape == mine.shape and 0.9 <= changed.min() <= 1.0 and 1.5 <= changed.max() <= 1.5 + 0.16 + 0.1

    # She takes an ogg along.
    assert make("slow organ chords", "--out", "organ.ogg") == 0
    assert soundfile.info("organ.ogg").format == "OGG" and loudness("organ.ogg") == pytest.approx(-18, abs=0.7)
    assert sorted(path.name for path in here.iterdir()) == [
        "again.wav", "longer.flac", "m.flac", "mine.flac", "organ.ogg", "out_1.wav", "out_2.wav"]
