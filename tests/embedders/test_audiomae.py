"""AudioMAE from its own names, against its encoder written out."""

import pytest
import torch
import torchaudio
from metrics_sounds import tones
from torch.nn import functional as F

from musiccm.embedders import audiomae, load_embedder
from musiccm.embedders.kaldi_fbank import KaldiFbank
from musiccm.errors import MusiccmError

WIDTH, DEPTH = 128, 2


@pytest.fixture(scope="module")
def state():
    """The names of AudioMAE's pre-training, decoder included; the published shape but for width and depth."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 513, WIDTH), "patch_embed.proj.weight": (WIDTH, 1, 16, 16),
              "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for i in range(DEPTH):
        block = {"norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
                 "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
                 "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
                 "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
                 "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"mask_token": (1, 1, 64), "decoder_embed.weight": (64, WIDTH), "decoder_pos_embed": (1, 513, 64),
               "decoder_blocks.0.norm1.weight": (64,), "decoder_norm.weight": (64,), "decoder_pred.bias": (256,)}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    """With the training's options beside the weights, as AudioMAE's training saves them."""
    import argparse

    path = tmp_path_factory.mktemp("mae") / "pretrained.pth"
    torch.save({"model": state, "epoch": 32, "args": argparse.Namespace(lr=1e-4, data="audioset")}, path)
    return path


def written_out(state, waveform_S):
    """AudioMAE's fbank and encoder, without masking; heads are 64 wide."""
    wave = (waveform_S - waveform_S.mean())[None]
    fbank = torchaudio.compliance.kaldi.fbank(wave, htk_compat=True, sample_frequency=16000, use_energy=False,
                                              window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10)
    image = torch.zeros(1024, 128)
    image[: min(1024, len(fbank))] = fbank[:1024]
    image = (image + 4.2677393) / (4.5689974 * 2)
    x = F.conv2d(image[None, None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    x = torch.cat([state["cls_token"] + state["pos_embed"][:, :1], x], dim=1)

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(1, -1, 3, WIDTH // 64, 64)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-1, -2)) / 8).softmax(-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")[0, 1:].mean(0)


@pytest.mark.parametrize(("seconds", "bins"), [(0.025, 128), (1.017, 128), (10.24, 64)])
def test_the_fbank_of_a_batch_is_torchaudios_of_each_clip(seconds, bins):
    waveform = torch.cat([tones(seconds), 0.3 * torch.randn(3, tones(seconds).shape[1])]) + 0.05
    theirs = torch.stack([torchaudio.compliance.kaldi.fbank(
        (clip - clip.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=bins, dither=0.0, frame_shift=10) for clip in waveform])
    assert theirs.shape[2] == bins and len(theirs) == 5
    torch.testing.assert_close(KaldiFbank(bins)(waveform), theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.2, 10.0, 10.24])
def test_equals_the_encoder_written_out(state, file, seconds):
    embedder = load_embedder("audiomae", file)
    waveform = tones(seconds) + 0.05
    found = embedder(waveform, 16000)
    theirs = torch.stack([written_out(state, clip) for clip in waveform])
    torch.testing.assert_close(found.embedding_RE, theirs, atol=1e-4, rtol=1e-4)
    assert found.counts == [1, 1] and found.logits_BG is None


def test_long_clips_are_the_mean_of_windows_end_to_end(file, monkeypatch):
    embedder = load_embedder("audiomae", file)
    waveform, window = tones(15.0, clips=1), 163840
    parts = [embedder(waveform[:, :window], 16000), embedder(waveform[:, -window:], 16000)]
    mean = torch.stack([part.embedding_RE for part in parts]).mean(0)
    torch.testing.assert_close(embedder(waveform, 16000).embedding_RE, mean, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(audiomae, "WINDOWS_PER_PASS", 1)
    torch.testing.assert_close(embedder(waveform, 16000).embedding_RE, mean, atol=1e-5, rtol=1e-5)


def test_refusals(state, tmp_path, file):
    embedder = load_embedder("audiomae", file)
    with pytest.raises(MusiccmError, match=r"audiomae: .*2800 samples.*found .*2799 samples"):
        embedder(torch.zeros(1, 2799), 16000)
    for change, message in (
        ({"fc_norm.weight": torch.ones(WIDTH)}, r"x\.pth: expected the pretrained AudioMAE"),
        ({"blocks.0.strange": torch.ones(1)}, r"blocks\.0\.strange is unknown; it is not AudioMAE's encoder"),
    ):
        torch.save({"model": {**state, **change}}, tmp_path / "x.pth")
        with pytest.raises(MusiccmError, match=message):
            load_embedder("audiomae", tmp_path / "x.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(MusiccmError, match="expected AudioMAE's weights, found none for patch_embed"):
        load_embedder("audiomae", tmp_path / "x.pth")
