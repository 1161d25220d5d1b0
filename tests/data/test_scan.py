"""Files spoilt the way that disks and downloads spoil them, in every codec, against what was done to them."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import closing

import numpy as np
import pytest
import soundfile
from small_corpus import RATE_HZ, sound

from musiccm.audio import AudioFacts
from musiccm.audio.windows import read_window
from musiccm.data.corpora.scan import AudioFile, AudioScan, Fault, examine_file

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def write(path, samples, rate_hz=RATE_HZ, **options):
    soundfile.write(path, samples, rate_hz, **options)
    return path


def reason(path, stated_s=None, min_duration_s=1.0):
    found = examine_file(AudioFile(path, stated_s), min_duration_s)
    return found.reason if isinstance(found, Fault) else None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rate_hz", [16000, 22050, 44100, 48000])
def test_whole_files_are_sound(tmp_path, suffix, rate_hz):
    for name, samples in (("mono", sound(1, 2.3, rate_hz)), ("stereo", np.stack([sound(1, 2.3), sound(2, 2.3)], 1))):
        found = examine_file(AudioFile(write(tmp_path / f"{name}{suffix}", samples, rate_hz)), 0.5)
        assert isinstance(found, AudioFacts), (suffix, rate_hz, found)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.77, 0.95, 0.99])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off_is_truncated(tmp_path, suffix, share):
    path = write(tmp_path / f"cut{suffix}", sound(3, 4.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path) == "truncated"


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_an_mp3_without_a_frame_count_is_judged_by_its_last_frame_or_by_the_length_that_is_stated(tmp_path, share):
    constant = {"bitrate_mode": "CONSTANT", "compression_level": 0.85}
    path = write(tmp_path / "clip.mp3", sound(4, 5.0), **constant)
    whole = path.read_bytes()
    assert b"Xing" not in whole and b"Info" not in whole
    assert reason(path) is None and reason(path, 5.0) is None
    path.write_bytes(whole[: int(len(whole) * share) + 11])
    assert reason(path) == reason(path, 5.0) == "truncated"
    write(path, sound(4, 3.0), **constant)  # whole in itself, but not what the corpus says it is
    assert reason(path) is None and reason(path, 5.0) == "truncated"
    path.write_bytes(whole + b"TAG" + b"title".ljust(125, b"\0"))
    assert reason(path) is None
    # libsndfile guesses the length from the size of the file, tags included: the samples have to be counted
    path.write_bytes(b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2048) + whole)
    found = examine_file(AudioFile(path, 5.0), 1.0)
    assert soundfile.info(path).frames > 88000 and 80000 <= found.frames <= 82000
    window = read_window(str(path), found, 8000, RATE_HZ, found.frames - 8000)
    assert window.abs().max() > 0.2 and window[-400:].abs().max() > 0.001


def test_a_flac_that_is_damaged_in_the_middle_is_not_truncated(tmp_path):
    path = write(tmp_path / "a.flac", sound(5, 4.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = os.urandom(3000)
    path.write_bytes(data)
    assert reason(path) in ("unreadable", None)  # libsndfile conceals what it can


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("other", SUFFIXES)
def test_a_name_that_lies_about_the_format(tmp_path, suffix, other):
    shutil.copy(write(tmp_path / f"a{suffix}", sound(6)), tmp_path / f"b{other}")
    assert reason(tmp_path / f"b{other}") == (None if suffix == other else "mislabelled")


def test_the_other_reasons(tmp_path):
    (tmp_path / "zero.mp3").write_bytes(b"")
    (tmp_path / "noise.ogg").write_bytes(b"\x01" * 5000)
    (tmp_path / "text.mp3").write_text("<html>404 Not Found</html>")
    write(tmp_path / "empty.wav", np.zeros(0, np.float32))
    write(tmp_path / "silent.mp3", np.zeros(32000, np.float32))
    write(tmp_path / "nan.wav", np.where(np.arange(32000) == 9, np.nan, sound(1)), subtype="FLOAT")
    write(tmp_path / "inf.wav", np.where(np.arange(32000) == 9, np.inf, sound(1)), subtype="FLOAT")
    write(tmp_path / "short.ogg", sound(2, 0.4))
    (tmp_path / "folder.mp3").mkdir()
    found = {path.name: reason(path) for path in tmp_path.iterdir()} | {"gone": reason(tmp_path / "gone.mp3")}
    assert found == {
        "zero.mp3": "zero_byte", "noise.ogg": "unreadable", "text.mp3": "unreadable", "empty.wav": "empty",
        "silent.mp3": "silent", "nan.wav": "nan", "inf.wav": "nan", "short.ogg": "too_short",
        "folder.mp3": "unreadable", "gone": "missing",
    }


def test_the_same_samples_have_one_digest_and_others_another(tmp_path):
    samples = (sound(1) * 32767).astype(np.int16)
    files = [AudioFile(write(tmp_path / name, samples)) for name in ("a.wav", "b.flac")]
    files.append(AudioFile(write(tmp_path / "c.flac", samples[::-1])))
    scan = AudioScan(tmp_path, "x")
    facts = [found for _, found in scan.results(files)]
    assert facts[0] == facts[1] and facts[2].peak == facts[0].peak and facts[2].dc == facts[0].dc
    assert facts[0].digest == facts[1].digest != facts[2].digest
    assert facts[0].digest == hashlib.blake2b((samples / np.float32(32768)).tobytes(), digest_size=16).hexdigest()
    assert [found for _, found in AudioScan(tmp_path, "x").results(files)] == facts


def test_the_channel_that_is_heard_decides_the_facts(tmp_path):
    left, right = sound(1), sound(2) + 0.1
    files = [AudioFile(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))]
    found = {}
    for channel, heard in (("mean", (left + right) / 2), ("first", left), ("mean", (left + right) / 2)):
        ((_, facts),) = AudioScan(tmp_path, "x", channel=channel).results(files)
        assert facts.dc == pytest.approx(heard.mean(dtype=np.float64), abs=1e-8) and facts.channels == 2
        assert facts.peak == pytest.approx(np.abs(heard - heard.mean(dtype=np.float64)).max(), rel=1e-6)
        found.setdefault(channel, facts)
        assert facts == found[channel]


def test_a_scan_that_is_stopped_early_forgets_nothing(tmp_path):
    files = [AudioFile(write(tmp_path / f"{n}.wav", sound(n))) for n in range(5)]
    list(AudioScan(tmp_path, "x").results(files))
    before = (tmp_path / ".scan-x.json").read_text()
    with closing(AudioScan(tmp_path, "x").results(files)) as results:
        next(results)
    assert (tmp_path / ".scan-x.json").read_text() == before
    list(AudioScan(tmp_path, "x").results(files[1:]))
    assert '"0.wav"' not in (tmp_path / ".scan-x.json").read_text()
