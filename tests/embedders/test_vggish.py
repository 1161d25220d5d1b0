"""VGGish against the original's steps, written with NumPy in float64, and its class as torchvggish has it."""

import numpy as np
import pytest
import torch
from metrics_sounds import tones
from torch import nn

from musiccm.embedders import vggish
from musiccm.embedders.vggish import VggishEmbedder, VggishFrontEnd
from musiccm.errors import MusiccmError


def numpy_patches(wave: np.ndarray) -> np.ndarray:
    """Log-mel examples [patches, 96, 64] of one clip at 16 kHz, one value at a time where that is clearest."""
    count = 1 + (len(wave) - 400) // 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    magnitude = np.abs(np.fft.rfft([wave[i * 160 : i * 160 + 400] * window for i in range(count)], 512))
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    weights = np.zeros((257, 64))
    for k in range(1, 257):
        m = 1127 * np.log(1 + k * 8000 / 256 / 700)
        for j in range(64):
            up, down = (m - edges[j]) / (edges[j + 1] - edges[j]), (edges[j + 2] - m) / (edges[j + 2] - edges[j + 1])
            weights[k, j] = max(0.0, min(up, down))
    mel = np.log(magnitude @ weights + 0.01)
    return np.array([mel[i * 96 : (i + 1) * 96] for i in range(count // 96)])


class OriginalVgg(nn.Module):
    """torchvggish's class: two transposes before the linear layers; the last ReLU is taken off, as for FD_vgg."""

    def __init__(self):
        super().__init__()
        layers, inputs = [], 1
        for width in [64, "M", 128, "M", 256, 256, "M", 512, 512, "M"]:
            layers += [nn.MaxPool2d(2, 2)] if width == "M" else [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = inputs if width == "M" else width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                                        nn.Linear(4096, 128), nn.ReLU())
        self.embeddings = nn.Sequential(*list(self.embeddings.children())[:-1])

    def forward(self, x):
        x = torch.transpose(self.features(x), 1, 3)
        x = torch.transpose(x, 1, 2).contiguous()
        return self.embeddings(x.view(x.size(0), -1))


@pytest.fixture(scope="module")
def original(vggish_state):
    with torch.device("meta"):
        model = OriginalVgg()
    model.load_state_dict(vggish_state, assign=True)

    def run(wave_S: torch.Tensor) -> torch.Tensor:
        examples = torch.tensor(numpy_patches(wave_S.double().numpy())[:, None], dtype=torch.float32)
        with torch.no_grad():
            return model(examples)

    return run


def test_front_end_equals_numpy():
    wave = tones(2.0, clips=1)[0]
    ours = VggishFrontEnd()(wave.unfold(-1, vggish.PATCH, vggish.PATCH_HOP))[:, 0]
    np.testing.assert_allclose(ours.numpy(), numpy_patches(wave.double().numpy()), atol=1e-4)


def test_equals_the_original(vgg, original):
    waveform = tones(2.5)
    found = vgg(waveform, 16000)
    theirs = torch.cat([original(clip) for clip in waveform])
    assert found.counts == [2, 2] and found.logits_BG is None and theirs.abs().max() > 0.1
    torch.testing.assert_close(found.embedding_RE, theirs, atol=1e-4, rtol=1e-4)
    assert (found.embedding_RE < 0).any(), "the final ReLU is off"


@pytest.mark.parametrize(("samples", "patches"), [(15600, 1), (30959, 1), (30960, 2), (160000, 10), (163840, 10)])
def test_patches_of_a_clip(vgg, monkeypatch, samples, patches):
    monkeypatch.setattr(vgg.network, "forward", lambda x: x.flatten(1)[:, :1])  # counts need no convolutions
    assert vgg(torch.zeros(1, samples), 16000).counts == [patches]


def test_passes_and_autocast_change_nothing(vgg, monkeypatch):
    waveform = tones(3.0)
    plain = vgg(waveform, 16000).embedding_RE
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vgg(waveform, 16000).embedding_RE, plain)
    monkeypatch.setattr(vggish, "PATCHES_PER_PASS", 1)
    torch.testing.assert_close(vgg(waveform, 16000).embedding_RE, plain, atol=1e-4, rtol=1e-4)
    alone = torch.cat([vgg(clip[None], 16000).embedding_RE for clip in waveform])
    torch.testing.assert_close(alone, plain, atol=1e-4, rtol=1e-4)


def test_less_than_a_patch_is_refused(vgg):
    with pytest.raises(MusiccmError, match=r"vgg: expected clips of at least 0\.975 s \(15600 samples .*15599 samples"):
        vgg(torch.zeros(1, 15599), 16000)


def test_other_checkpoints_are_refused_and_the_pca_step_is_left_out(vgg, vggish_state):
    with pytest.raises(MusiccmError, match=r"v\.pth: features\.0\.weight is missing"):
        VggishEmbedder({"conv.weight": torch.zeros(1)}, "v.pth")
    with_pca = {**vggish_state, "pproc.pca_means": torch.zeros(128, 1)}
    assert VggishEmbedder(with_pca).fingerprint == vgg.fingerprint
