from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from musiccm.audio import LogMel, MelConfig
from musiccm.audio.mel import slaney_filters
from musiccm.errors import MusiccmError

librosa = pytest.importorskip("librosa")


def librosa_mel(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """MusicLDM's definition, computed with librosa in float64."""
    magnitude = np.abs(
        librosa.stft(wave.astype(np.float64), n_fft=config.n_fft, hop_length=config.hop_length,
                     win_length=config.win_length, window="hann", center=True, pad_mode="reflect")
    )
    filters = librosa.filters.mel(sr=config.sample_rate_hz, n_fft=config.n_fft, n_mels=config.n_mels,
                                  fmin=config.fmin_hz, fmax=config.fmax_hz, dtype=np.float64)
    mel = np.log(np.maximum(filters @ magnitude, 1e-5)).T
    return mel[: len(wave) // config.hop_length]


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(n_mels=128), MelConfig(win_length=800, fmax_hz=7000.0)])
def test_equals_librosa(config):
    time = np.arange(16000) / 16000
    rng = np.random.default_rng(0)
    wave = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * rng.standard_normal(16000) * time).astype(np.float32)
    ours = LogMel(config)(torch.from_numpy(wave)[None])[0].numpy()
    np.testing.assert_allclose(ours, librosa_mel(wave, config), atol=2e-3)
    np.testing.assert_allclose(np.exp(ours), np.exp(librosa_mel(wave, config)), atol=1e-5, rtol=1e-4)


def test_filters_equal_librosa():
    ours = LogMel().filters.T.numpy()
    theirs = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=0, fmax=8000)
    assert np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize("config", [
    MelConfig(), MelConfig(n_mels=128, fmin_hz=20.0), MelConfig(48000, 1024, 1024, 480, 64, 50.0, 14000.0),
    MelConfig(44100, 2048, 2048, 512, 80, 0.0, 22050.0), MelConfig(8000, 512, 512, 80, 20, 0.0, 900.0),
])
def test_filters_are_torchaudios_to_the_bit(config):
    """Caches and weights were made with those."""
    theirs = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1, config.fmin_hz, config.fmax_hz, config.n_mels, config.sample_rate_hz, "slaney", "slaney")
    assert torch.equal(slaney_filters(config), theirs)


def test_frames_floor_and_shape():
    mel = LogMel()
    assert mel(torch.zeros(2, 81920)).shape == (2, 512, 64)
    assert mel(torch.zeros(163840)).shape == (1024, 64)
    assert mel(torch.zeros(1, 1700)).shape == (1, 10, 64)
    assert torch.allclose(mel(torch.zeros(1, 1700)), torch.tensor(1e-5).log())


def test_gradient_reaches_the_waveform():
    wave = torch.randn(1, 1600, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mel = LogMel().double()
    direction = torch.randn(1, 1600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(mel(wave).sum(), wave)
    step = 1e-6
    numeric = (mel(wave + step * direction).sum() - mel(wave - step * direction).sum()) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_the_mel():
    wave = torch.randn(1, 1600, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LogMel()(wave)
    assert torch.equal(inside, LogMel()(wave))


def test_too_short_is_refused():
    with pytest.raises(MusiccmError, match="512"):
        LogMel()(torch.zeros(1, 400))
