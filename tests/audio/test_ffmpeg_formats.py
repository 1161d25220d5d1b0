"""m4a, aac and webm through PyAV or the program ffmpeg, opus through libsndfile, and what is said where neither is."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musiccm.audio import BadAudio, ffmpeg_formats, read_audio, scan_audio
from musiccm.audio.io import readable_suffixes
from musiccm.data.corpora.folder_scan import scan_folder
from musiccm.data.corpora.scan import AudioFile, Fault, examine_file

RATE_HZ = 48000
TIME_S = np.arange(RATE_HZ + 96) / RATE_HZ
TUNE_CS = np.stack([0.4 * np.sin(2 * math.pi * 440 * TIME_S), 0.2 * np.sin(2 * math.pi * 660 * TIME_S)])
M4A = b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom" + bytes(99)
#: By its suffix: container and coder, as ffmpeg calls them.
FORMATS = {".m4a": ("ipod", "aac"), ".aac": ("adts", "aac"), ".webm": ("webm", "libopus")}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the two."""
    monkeypatch.setattr(ffmpeg_formats, "_pyav", lambda: None)
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def encoded(path: Path, av: Any) -> Path:
    container, coder = FORMATS[path.suffix]
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(coder, rate=RATE_HZ)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(TUNE_CS.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return path


def check(path: Path) -> None:
    """The tune, whichever way it was decoded; coders may shift it by some frames."""
    whole, rate_hz = read_audio(path)
    assert rate_hz == RATE_HZ and abs(len(whole) - len(TIME_S)) <= (0 if path.suffix == ".m4a" else 2048)
    wanted = np.abs(np.fft.rfft(TUNE_CS.mean(0)[8000:32000]))
    found = np.abs(np.fft.rfft(whole.numpy()[8000:32000]))
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
    assert np.array_equal(read_audio(path, 0.25, 0.5)[0].numpy(), whole.numpy()[12000:36000])
    assert scan_audio(path).channels == 2
    facts = examine_file(AudioFile(path), 0.5)
    assert not isinstance(facts, Fault) and facts.frames == len(whole)
    renamed = shutil.copy(path, path.with_suffix(".flac"))
    assert examine_file(AudioFile(Path(renamed)), 0.5).reason == "mislabelled"  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", FORMATS)
def test_by_pyav(tmp_path: Path, rooms: Path, suffix: str) -> None:
    check(encoded(tmp_path / f"tune{suffix}", pytest.importorskip("av")))
    assert not list(rooms.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_by_the_program(tmp_path: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    av = pytest.importorskip("av")
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not here")
    path = encoded(tmp_path / f"tune{suffix}", av)
    monkeypatch.setattr(ffmpeg_formats, "_pyav", lambda: None)
    check(path)
    assert not list(rooms.iterdir())


#: In the place of ffmpeg: notes what it is asked for, and writes a tune or fails.
PROGRAM = """#!{python}
import json, shutil, sys
json.dump(sys.argv[1:], open({asked!r}, "w"))
if {fails}:
    sys.exit("moov atom not found")
shutil.copy({tune!r}, sys.argv[-1])
"""


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_program_is_asked_for(
    tmp_path: Path, rooms: Path, without: None, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    path, tune, asked = tmp_path / "-tune.m4a", tmp_path / "tune.w64", tmp_path / "asked.json"
    path.write_bytes(M4A)
    soundfile.write(tune, TUNE_CS.T, RATE_HZ, "FLOAT", format="W64")
    program = tmp_path / "ffmpeg"
    program.write_text(PROGRAM.format(python=sys.executable, asked=str(asked), tune=str(tune), fails=fails))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ffmpeg_formats.decoders() == ["ffmpeg"] and ".m4a" in readable_suffixes()
    if fails:
        with pytest.raises(BadAudio, match=r"MPEG-4 .*could not be decoded: moov atom not found.*convert it to wav"):
            read_audio(path)
    else:
        np.testing.assert_allclose(read_audio(path)[0].numpy(), TUNE_CS.mean(0), atol=1e-6)
    told = asked.read_text()
    assert f'"-protocol_whitelist", "file", "-f", "mov", "-i", "file:{path}"' in told
    assert not list(rooms.iterdir())


@pytest.mark.parametrize(("content", "what"), [
    (M4A, "MPEG-4 (m4a, mp4)"), (b"\x1a\x45\xdf\xa3" + bytes(99), "Matroska or WebM"),
    (bytes([0xFF, 0xF1, 0x50, 0x80, 0x10, 0x1F, 0xFC]) * 60, "AAC (adts)"),
])
def test_what_is_missing_is_named(tmp_path: Path, without: None, content: bytes, what: str) -> None:
    (tmp_path / "tune.m4a").write_bytes(content)
    with pytest.raises(BadAudio) as caught:
        read_audio(tmp_path / "tune.m4a")
    said = str(caught.value)
    assert caught.value.reason == "unreadable" and what in said
    assert 'pip install "musiccm[formats]" (PyAV), or install the program ffmpeg' in said and "convert it to" in said


def test_a_folder_takes_what_can_be_read_here(
    tmp_path: Path, without: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.m4a", "b.webm", "c.wma", "d.wav", "e.opus"):
        (tmp_path / name).write_bytes(b"x")
    found = scan_folder(tmp_path)
    assert [path.name for path in found.audio] == ["d.wav", "e.opus"]
    details = {item.id: item.detail for item in found.left_out}
    assert "musiccm[formats]" in details["a"] and "musiccm[formats]" in details["b"]
    assert details["c"].startswith(".wma is not read; convert it to")
    monkeypatch.setattr(ffmpeg_formats, "_pyav", lambda: os)
    assert [path.name for path in scan_folder(tmp_path).audio] == ["a.m4a", "b.webm", "d.wav", "e.opus"]


@pytest.mark.parametrize("suffix", [".opus", ".oga"])
def test_ogg_by_its_other_names_needs_nothing(tmp_path: Path, without: None, suffix: str) -> None:
    path = tmp_path / f"tune{suffix}"
    soundfile.write(path, TUNE_CS.T, RATE_HZ, "OPUS" if suffix == ".opus" else "VORBIS", format="OGG")
    whole, rate_hz = read_audio(path)
    assert rate_hz == RATE_HZ and len(whole) == pytest.approx(len(TIME_S), abs=960)
    assert np.corrcoef(whole.numpy()[8000:32000], TUNE_CS.mean(0)[8000:32000])[0, 1] > 0.99
    assert not isinstance(examine_file(AudioFile(path), 0.5), Fault)
