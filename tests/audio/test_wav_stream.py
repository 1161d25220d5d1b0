"""A wav that grows, read by another library."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musiccm.audio.io import write_audio
from musiccm.audio.wav_stream import MAX_DATA_BYTES, WavStream, wav_header
from musiccm.errors import MusiccmError

SOUND = 1.2 * torch.sin(torch.arange(5000) / 7)


def test_chunks_make_the_file_that_libsndfile_makes(tmp_path: Path) -> None:
    with WavStream(tmp_path / "deep" / "a.wav", 16000) as wav:
        for chunk in SOUND.split(1300):
            wav.write(chunk)
    write_audio(tmp_path / "b.wav", SOUND, 16000)
    ours, theirs = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("deep/a.wav", "b.wav"))
    assert np.array_equal(ours, theirs)
    with wave.open(str(tmp_path / "deep" / "a.wav")) as read:
        assert (read.getnframes(), read.getframerate(), read.getnchannels(), read.getsampwidth()) == (5000, 16000, 1, 2)


def test_a_file_plays_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wav = WavStream(path, 16000)
    for number, chunk in enumerate(SOUND.split(1000), 1):
        wav.write(chunk)
        assert soundfile.info(path).frames == 1000 * number  # not closed, not flushed: as after a kill


@pytest.mark.parametrize(("samples", "stated"), [(5000, 5000), (None, 2**31 - 1)])
def test_a_pipe_gets_its_sizes_at_once(samples: int | None, stated: int) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe, WavStream(pipe, 16000, samples) as wav:
        wav.write(SOUND)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert len(data) == 44 + 10000 and int.from_bytes(data[40:44], "little") // 2 == stated
    samples_read, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 16000 and len(samples_read) == 5000
    np.testing.assert_allclose(samples_read, SOUND.clamp(-1, 1), atol=1e-4)


def test_the_reader_may_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    pipe = os.fdopen(writing, "wb", buffering=0)
    with pytest.raises(BrokenPipeError), WavStream(pipe, 16000) as wav:
        wav.write(SOUND)


def test_what_a_wav_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="4 GiB"):
        WavStream(tmp_path / "a.wav", 16000, 2**31)
    assert not (tmp_path / "a.wav").exists()
    assert wav_header(16000, MAX_DATA_BYTES)[4:8] == b"\xfe\xff\xff\xff" or MAX_DATA_BYTES % 2
    wav = WavStream(tmp_path / "b.wav", 16000)
    wav._data_bytes = MAX_DATA_BYTES - 10
    with pytest.raises(MusiccmError, match="4 GiB"):
        wav.write(SOUND)
    with pytest.raises(MusiccmError, match="NaN"):
        wav.write(torch.tensor([float("nan")]))
    with pytest.raises(MusiccmError, match="could not be written"):
        WavStream(tmp_path / "b.wav" / "c.wav", 16000)
