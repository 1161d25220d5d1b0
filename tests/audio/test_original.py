"""Sound read and written again: the same samples, whatever they are held in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musiccm.audio.io import BadAudio
from musiccm.audio.original import encoded, read_original, write_original, written_form
from musiccm.errors import MusiccmError

#: libsndfile's name, how the samples are read to be compared, and what holds them.
KINDS = [("PCM_U8", "int16", "PCM_16"), ("PCM_16", "int16", "PCM_16"), ("PCM_24", "int32", "PCM_24"),
         ("PCM_32", "int32", "PCM_32"), ("FLOAT", "float32", "FLOAT"), ("DOUBLE", "float64", "DOUBLE"),
         ("ULAW", "int16", "PCM_16")]


def every_size(dtype: str) -> np.ndarray:
    """Samples of both channels from the least to the greatest, the ends included."""
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.normal(0, 1.5, (3000, 2)).astype(dtype)  # beyond full scale, too
    ends = np.iinfo(dtype)
    values = rng.integers(ends.min, ends.max, (3000, 2), dtype=dtype, endpoint=True)
    values[:6, 0] = [ends.min, ends.max, 0, -1, 1, ends.min + 1]
    return values


@pytest.mark.parametrize(("subtype", "dtype", "form"), KINDS)
def test_a_wav_comes_back_bit_for_bit(tmp_path: Path, subtype: str, dtype: str, form: str) -> None:
    soundfile.write(tmp_path / "a.wav", every_size(dtype), 44100, subtype=subtype)
    original = read_original(tmp_path / "a.wav")
    assert (original.form, original.sample_rate_hz, original.channels, original.samples) == (form, 44100, 2, 3000)
    write_original(tmp_path / "b.wav", original.waveform_CS, 44100, form)
    assert soundfile.info(tmp_path / "b.wav").subtype == form and written_form(form, ".wav") == (form, True)
    read = [soundfile.read(tmp_path / name, dtype=dtype)[0] for name in ("a.wav", "b.wav")]
    np.testing.assert_array_equal(*read)


@pytest.mark.parametrize(("form", "exact"), [("PCM_16", True), ("PCM_24", True), ("PCM_32", False), ("FLOAT", False)])
def test_a_flac_holds_24_bits(tmp_path: Path, form: str, exact: bool) -> None:
    samples = every_size("int32") if form != "FLOAT" else every_size("float32").clip(-1, 1 - 2**-23)
    soundfile.write(tmp_path / "a.wav", samples, 48000, subtype=form)
    original = read_original(tmp_path / "a.wav")
    write_original(tmp_path / "b.flac", original.waveform_CS, 48000, form)
    first, second = (soundfile.read(tmp_path / name, dtype="float64")[0] for name in ("a.wav", "b.flac"))
    assert written_form(form, ".flac")[1] == exact == np.array_equal(first, second)
    assert np.abs(first - second).max() <= 2**-23


def test_rounding_and_clipping_of_new_sound() -> None:
    """To the nearest step of 16 bits, and to its ends."""
    waveform_CS = torch.tensor([[0.4 / 32768, 0.6 / 32768, -0.6 / 32768, 1.5, -1.5]])
    data = encoded(waveform_CS, 16000, "PCM_16", ".wav", "x.wav")
    assert np.frombuffer(data[-10:], "<i2").tolist() == [0, 1, -1, 32767, -32768]


def test_formats_that_lose_samples_say_so(tmp_path: Path) -> None:
    tone = 0.3 * torch.sin(torch.arange(16000) / 9)[None]
    for suffix in (".ogg", ".mp3"):
        assert written_form("PCM_16", suffix) == (None, False)
        write_original(tmp_path / f"a{suffix}", tone, 16000, "PCM_16")
        assert read_original(tmp_path / f"a{suffix}").form == "FLOAT"


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    for waveform, said in ((torch.full((1, 9), torch.nan), "NaN"), (torch.zeros(9), "found shape")):
        with pytest.raises(MusiccmError, match=f"x.wav: expected (finite )?samples.*{said}"):
            encoded(waveform, 16000, "PCM_16", ".wav", "x.wav")
    with pytest.raises(MusiccmError, match="suffixes"):
        encoded(torch.zeros(1, 9), 16000, "PCM_16", ".txt", "x.txt")
    with pytest.raises(MusiccmError, match=r"take 20 channel\(s\) at \d+ Hz \([^<>]*\); choose another format"):
        encoded(torch.zeros(20, 9), 16000, "PCM_16", ".flac", "x.flac")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros((99, 2)), 16000)
    for name, reason in (("none.wav", "empty"), ("silent.wav", "silent")):
        with pytest.raises(BadAudio) as caught:
            read_original(tmp_path / name)
        assert caught.value.reason == reason
