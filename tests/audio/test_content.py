"""Files with something in front, with a header that nobody finished, or that are no sound at all."""

from __future__ import annotations

import os
import shutil
import struct

import numpy as np
import pytest
import soundfile

from musiccm.audio import BadAudio, read_audio, scan_audio
from musiccm.audio.containers import missing_end
from musiccm.audio.io import read_range
from musiccm.data.corpora.scan import AudioFile, Fault, examine_file

RATE_HZ = 16000
SAMPLES = np.random.default_rng(0).uniform(-0.4, 0.4, 2 * RATE_HZ)
TAG = b"ID3\x03\x00\x00\x00\x00\x00\x0cTIT2\x00\x00\x00\x02\x00\x00\x00x"
FOOTED = b"ID3\x04\x00\x10\x00\x00\x00\x0cTIT2\x00\x00\x00\x02\x00\x00\x00x3DI\x04\x00\x10\x00\x00\x00\x0c"
LARGE = b"ID3\x03\x00\x00\x00\x00\x04\x00" + b"APIC" + bytes(508)


def examined(path):
    found = examine_file(AudioFile(path), 0.5)
    return (found.reason, found.detail) if isinstance(found, Fault) else found.frames


@pytest.mark.parametrize("front", [TAG, TAG + TAG, FOOTED, FOOTED + LARGE, TAG + bytes(333), FOOTED + bytes(9) + TAG])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_tags_in_front_of_any_format_are_passed_over(tmp_path, suffix, front):
    plain, tagged = tmp_path / f"plain{suffix}", tmp_path / f"tagged{suffix}"
    soundfile.write(plain, SAMPLES, RATE_HZ)
    tagged.write_bytes(front + plain.read_bytes())
    whole, rate_hz = read_audio(tagged)
    assert rate_hz == RATE_HZ and examined(tagged) == examined(plain) == len(whole) and missing_end(tagged) is None
    np.testing.assert_array_equal(whole.numpy(), read_audio(plain)[0].numpy())
    np.testing.assert_array_equal(read_range(tagged, 20000, 3000).numpy(), whole[20000:23000].numpy())
    tagged.write_bytes(tagged.read_bytes()[: len(front) + plain.stat().st_size // 2])
    assert examined(tagged)[0] == "truncated"
    shutil.copy(tagged, tmp_path / "other.aiff.mp3" if suffix != ".mp3" else tmp_path / "other.wav")
    other = next(tmp_path.glob("other*"))
    assert examined(other) == ("mislabelled", f"named {other.suffix}, but the content is {suffix[1:]}")


def wav(path, riff, data, subtype="PCM_16"):
    """A wav whose header states other sizes: of the whole, and of the samples."""
    soundfile.write(path, SAMPLES, RATE_HZ, subtype=subtype)
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("riff", "data"), [
    (0, 0), (36, 0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF - 36), (0, 0xFFFFFFFF),
    (0x7FFFFFFF, 0x7FFFFFFF - 36), (0x7FFFF024, 0x7FFFF000), (0x80000024, 0x80000000), (0x7FFFF000, 0x7FFFEFDC),
    (36, 9_999_998), (0, 9_999_998),
])
def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path, riff, data):
    path = wav(tmp_path / "a.wav", riff, data)
    assert examined(path) == len(SAMPLES)
    np.testing.assert_allclose(read_audio(path)[0].numpy(), SAMPLES, atol=1 / 32768)
    np.testing.assert_allclose(read_range(path, 30000, 500).numpy(), SAMPLES[30000:30500], atol=1 / 32768)


def test_a_wav_that_states_a_length_and_ends_before_it_is_truncated(tmp_path):
    for size in (len(SAMPLES) * 2 + 2, 9_999_998, 0x7FFEFFFE):
        path = wav(tmp_path / "a.wav", size + 36, size)
        assert examined(path) == ("truncated", f"64000 of {size} bytes of samples")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    assert examined(tmp_path / "empty.wav")[0] == "empty"


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_an_rf64_from_a_pipe_is_whole_and_a_cut_one_is_not(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES, RATE_HZ, format="RF64")
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    assert examined(path) == ("truncated", "63000 of 64000 bytes of samples")
    assert content[12:16] == b"ds64"
    path.write_bytes(content[:20] + struct.pack("<QQ", size, size) + content[36:])
    assert examined(path) == len(SAMPLES)


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2_000_000_000])
def test_a_rate_that_no_sound_has_is_a_bad_header(tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES, RATE_HZ)
    content = path.read_bytes()
    path.write_bytes(content[:24] + struct.pack("<I", rate_hz) + content[28:])
    for read in (read_audio, scan_audio):
        with pytest.raises(BadAudio, match=rf"a\.wav: unreadable \(the header states .* rate of {rate_hz:,} Hz"):
            read(path)
    assert examined(path)[0] == "unreadable"


def test_the_lowest_and_the_highest_rate_are_read(tmp_path):
    for rate_hz in (1000, 768_000):
        soundfile.write(tmp_path / "a.wav", SAMPLES, rate_hz)
        assert scan_audio(tmp_path / "a.wav").sample_rate_hz == rate_hz


FOREIGN = {
    "m4a": (b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom" + bytes(99), "MPEG-4", "convert it to wav"),
    "adts": (bytes([0xFF, 0xF1, 0x50, 0x80, 0x10, 0x1F, 0xFC]) * 60, "AAC", "convert it to wav"),
    "wma": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99), "Windows Media", "convert it to wav"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(99), "WebM", "convert it to wav"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "web page", "get the file again"),
    "json": (b'{"error": "no such track"}', "JSON", "get the file again"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML", "get the file again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-LFS", "git lfs pull"),
    "text": (b"Not found: the track that you asked for\n", "a text ('Not found", "get the file again"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gzip", "unpack it"),
    "zip": (b"PK\x03\x04" + bytes(99), "zip", "unpack it"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG", "get the file again"),
    "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(99), "JPEG", "get the file again"),
    "zeros": (bytes(100_000), "zeros", "get the file again"),
    "noise": (np.random.default_rng(3).bytes(5000), "no format that libsndfile knows", "re-encode or remove"),
    "two bytes": (b"ab", "no format that libsndfile knows", "re-encode or remove"),
    "a tag alone": (TAG, "no format that libsndfile knows", "re-encode or remove"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", [".mp3", ".wav"])
def test_what_is_no_sound_is_called_by_its_name(tmp_path, capfd, name, suffix):
    content, what, advice = FOREIGN[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for read in (read_audio, scan_audio):
        with pytest.raises(BadAudio) as caught:
            read(path)
        text = str(caught.value)
        assert caught.value.reason == "unreadable" and str(path) in text and what in text and advice in text
        assert "exist" not in text
    if name != "a tag alone":
        reason, detail = examined(path)
        assert reason == "unreadable" and what in detail and (advice in detail or "re-encode" in advice)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["AIFF", "CAF", "AU", "W64", "NIST", "PVF"])
def test_other_formats_that_libsndfile_reads_are_still_read(tmp_path, format):
    soundfile.write(tmp_path / "a.wav", SAMPLES, RATE_HZ, format=format)
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.mp3")
    assert examined(tmp_path / "a.wav") == examined(tmp_path / "b.mp3") == len(SAMPLES)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_name_that_is_not_utf_8_is_opened(tmp_path, suffix):
    soundfile.write(tmp_path / f"a{suffix}", SAMPLES, RATE_HZ)
    try:
        path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode())
        shutil.copy(tmp_path / f"a{suffix}", path)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 alone")
    np.testing.assert_array_equal(read_audio(path)[0].numpy(), read_audio(tmp_path / f"a{suffix}")[0].numpy())
    assert scan_audio(path).frames >= len(SAMPLES)
    read_range(path, 5000, 100)
