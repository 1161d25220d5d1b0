"""Feature networks, and the map to their filter banks against Kaldi's and CLAP's own."""

import copy
from pathlib import Path

import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from tiny_bundle import make_clap, make_feature_extractor
from transformers import ClapFeatureExtractor

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.conditioners.clap import ClapFrontEnd
from musiccm.models.fbank_adapter import FbankAdapter
from musiccm.models.features import ClapFeatures, ViTConfig, ViTFeatures

RATE = 16000
SMALL = {"frames": 64, "bins": 64, "width": 16, "depth": 4, "heads": 2}


def coloured_noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, 2 * RATE, generator=generator)
    return torchaudio.functional.lowpass_biquad(noise, RATE, 2000)


@pytest.fixture(scope="module")
def vit() -> ViTFeatures:
    torch.manual_seed(0)
    return ViTFeatures(SMALL).eval()


def test_features_equal_timm(vit: ViTFeatures, device: str) -> None:
    vit = copy.deepcopy(vit).to(device)
    mel = (torch.randn(2, 64, 64) * 3 - 5).to(device)
    image = (mel.unsqueeze(1) - vit.config.mean) / (2 * vit.config.std)
    theirs = vit.vit.forward_intermediates(image, indices=vit.indices, output_fmt="NLC", intermediates_only=True)
    ours = vit(mel)
    assert vit.indices == [0, 1, 2, 3] and len(ours) == 5
    for mine, reference in zip(ours[1:], theirs, strict=True):
        torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(vit.embed(mel), vit.vit(image))
    features, embedding = vit.with_embedding(mel)
    assert torch.equal(embedding, vit.embed(mel))
    assert all(torch.equal(a, b) for a, b in zip(features, ours, strict=True))


def test_crop_takes_the_first_rows_of_the_grid(vit: ViTFeatures) -> None:
    """The patch embedding of a crop is that of the whole clip's first tokens: time-major order."""
    mel = torch.randn(1, 64, 64)
    torch.testing.assert_close(vit(mel[:, :40])[0], vit(mel)[0][:, :8])


def test_gradient_reaches_the_mel(vit: ViTFeatures, device: str) -> None:
    mel = torch.randn(1, 64, 64, device="cpu").to(device).requires_grad_(True)
    copy.deepcopy(vit).to(device)(mel)[-1].square().sum().backward()
    assert mel.grad is not None and mel.grad.abs().sum() > 0


def test_files_round_trip_and_decoder_weights_are_passed_over(vit: ViTFeatures, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "blocks.0.attn.qkv.weight" in state and "pos_embed" in state
    save_file({**state, "mask_token": torch.zeros(1), "decoder_blocks.0.weight": torch.zeros(1)},
              tmp_path / "model.safetensors")
    again = ViTFeatures.from_pretrained(tmp_path)
    mel = torch.randn(1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(vit(mel), again(mel), strict=True))


def test_statistics_are_kept(tmp_path: Path) -> None:
    vit = ViTFeatures(SMALL)
    vit.set_statistics(-6.5, 2.25)
    vit.save_pretrained(tmp_path)
    normalised = ViTFeatures.from_pretrained(tmp_path).normalise(torch.full((1, 16, 64), -2.0))
    torch.testing.assert_close(normalised, torch.full((1, 16, 64), 1.0))


def test_default_is_audiomae() -> None:
    """150 weights, positions of 512 patches and a class token: the published encoder.

    Its fine-tuned variant has 85,659,407 trainable parameters: these, less the fixed positions (513 x 768), with the
    final norm (1,536) as fc_norm and a head of 527 classes (405,263).
    """
    with torch.device("meta"):
        state = ViTFeatures(ViTConfig(), MelConfig(n_mels=128)).vit.state_dict()
    assert len(state) == 150
    assert sum(v.numel() for v in state.values()) == 85_659_407 - 527 * 769 + 513 * 768
    assert state["pos_embed"].shape == (1, 513, 768)
    assert state["patch_embed.proj.weight"].shape == (768, 1, 16, 16)


@pytest.mark.parametrize("depth, expected", [(12, [2, 5, 8, 11]), (6, [1, 2, 4, 5]), (4, [0, 1, 2, 3]), (2, [0, 1])])
def test_indices_are_spread(depth: int, expected: list[int]) -> None:
    assert ViTFeatures({**SMALL, "depth": depth}).indices == expected


def test_kaldi_adapter_predicts_kaldi() -> None:
    wave = coloured_noise()
    reference = torchaudio.compliance.kaldi.fbank(
        wave - wave.mean(), htk_compat=True, sample_frequency=RATE, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )
    predicted = FbankAdapter.to_kaldi(MelConfig())(LogMel()(wave))[0, 1:]
    predicted, reference = predicted[: len(reference)][:190], reference[:190]
    # Over time, since single frames of noise scatter by more than a nat in either analysis; the last two filters lie at
    # the low-pass's zero at Nyquist, which neither analysis resolves.
    bias = (predicted - reference).mean(0)
    assert bias[:-2].abs().max() < 0.8 and bias.abs().mean() < 0.4
    spectrum = torch.corrcoef(torch.stack([predicted.mean(0), reference.mean(0)]))[0, 1]
    assert spectrum > 0.99


@pytest.mark.parametrize("rate, n_fft, fmax, truncation", [(16000, 512, 8000, "fusion"),
                                                           (48000, 1024, 14000, "rand_trunc")])
def test_clap_adapter_predicts_clap(rate: int, n_fft: int, fmax: int, truncation: str) -> None:
    extractor = ClapFeatureExtractor(
        feature_size=64, sampling_rate=rate, hop_length=rate // 100, max_length_s=2, fft_window_size=n_fft,
        frequency_min=50, frequency_max=fmax, truncation=truncation,
    )
    wave = coloured_noise()
    reference = ClapFrontEnd(extractor)(torchaudio.functional.resample(wave, RATE, rate))[0, 0, :200]
    adapter = ClapFeatures(make_clap(300), extractor, MelConfig()).adapter
    bias = (adapter(LogMel()(wave))[0] - reference).mean(0)
    heard = reference.mean(0) > -70
    assert heard.sum() > 45
    assert bias[heard].abs().mean() < 2.0


def test_identity_where_bins_agree() -> None:
    mel = torch.randn(1, 5, 64)
    assert torch.equal(FbankAdapter.identity(64)(mel), mel)


def test_clap_features() -> None:
    torch.manual_seed(0)
    features = ClapFeatures(make_clap(300), make_feature_extractor(), MelConfig()).train()
    assert not features.clap.training
    mel = torch.randn(2, 96, 64, requires_grad=True)
    found = features(mel)
    assert [f.shape[2] for f in found] == features.widths and len(found) == 3
    found[-1].square().sum().backward()
    assert mel.grad is not None and mel.grad.abs().sum() > 0
    again, embedding = features.with_embedding(mel)
    assert torch.equal(embedding, features.embed(mel))
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
    theirs = features.clap.audio_projection(features._run(mel).pooler_output)
    torch.testing.assert_close(embedding, theirs / theirs.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(features.embed(mel).norm(dim=-1), torch.ones(2))
    assert features.embed(mel).shape == (2, features.embed_width)


def test_bad_shapes_are_refused(vit: ViTFeatures) -> None:
    with pytest.raises(MusiccmError, match="80 mel frames"):
        vit(torch.zeros(1, 80, 64))
    with pytest.raises(MusiccmError, match="multiples of 16"):
        ViTFeatures({**SMALL, "frames": 70})
    with pytest.raises(MusiccmError, match="128 bins"):
        ViTFeatures({**SMALL, "bins": 128})
    with pytest.raises(MusiccmError, match="indices"):
        ViTFeatures({**SMALL, "indices": [4]})
