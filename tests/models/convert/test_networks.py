"""Converted networks compute what the original ones do, at random weights, every tensor accounted for."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_ldm import OriginalUNet, OriginalVae, OriginalVocoder, randomise
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from musiccm.errors import MusiccmError
from musiccm.models.convert.unet import unet_from_original
from musiccm.models.convert.vae import vae_from_original
from musiccm.models.convert.vocoder import vocoder_from_original


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def unet_output(unet: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
    z, t, cond = arguments
    return unet(z, t, encoder_hidden_states=None, class_labels=cond).sample


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize(("levels", "blocks", "channels"), [((1, 2, 3), 2, 8), ((1, 3), 1, 16)])
@torch.no_grad()
def test_unet_computes_the_same(concat: bool, levels: tuple[int, ...], blocks: int, channels: int) -> None:
    original = randomise(OriginalUNet(32, levels, blocks, channels, head=16, cond=24, concat=concat), 0)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, channels, 16, 8, generator=generator)
    t, cond = torch.tensor([19, 999]), torch.randn(2, 24, generator=generator)
    found = unet_from_original(original.state_dict(), 16, 16, "unet")
    unet = found.build(lambda config: UNet2DConditionModel(**config), "unet")
    assert found.dropped == [] and len(found.state) == len(original.state_dict())
    expected = original(z, t, cond)
    assert relative(unet_output(unet, z, t, cond), expected) < 1e-4
    assert unet.config.attention_head_dim == [max(1, 32 * level // 16) for level in levels]
    # heads of another size have the same weights and say something else
    wrong = UNet2DConditionModel(**{**found.config, "attention_head_dim": 4}).eval()
    wrong.load_state_dict(unet.state_dict())
    assert relative(unet_output(wrong, z, t, cond), expected) > 1e-2


@pytest.mark.parametrize("levels", [(1, 2, 4), (1, 2, 2, 4)])
@torch.no_grad()
def test_vae_computes_the_same(levels: tuple[int, ...]) -> None:
    original = randomise(OriginalVae(32, levels, blocks=1, z=4), 0)
    state = original.state_dict() | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(1)}
    found = vae_from_original(state, 0.7, "vae")
    vae = found.build(lambda config: AutoencoderKL(**config), "vae")
    assert found.dropped == ["loss.logvar", "loss.discriminator.main.0.weight"]
    assert len(found.state) + len(found.dropped) == len(state)
    assert vae.config.scaling_factor == 0.7
    mel = torch.randn(2, 1, 64, 32, generator=torch.Generator().manual_seed(1))
    moments = original.moments(mel)
    posterior = vae.encode(mel).latent_dist
    assert relative(torch.cat([posterior.mean, posterior.logvar], 1), moments.clamp(-30, 20)) < 1e-4
    z = moments[:, :4]
    assert relative(vae.decode(z).sample, original.decode(z)) < 1e-4


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_vocoder_computes_the_same(folded: bool) -> None:
    original = randomise(OriginalVocoder(mels=16, width=64), 0)
    mel = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    expected = original(mel)
    if folded:
        for module in original.modules():
            if hasattr(module, "weight_g"):
                torch.nn.utils.remove_weight_norm(module)
    found = vocoder_from_original(original.state_dict(), None, "vocoder")
    vocoder = found.build(lambda config: SpeechT5HifiGan(SpeechT5HifiGanConfig(**config)), "vocoder")
    assert expected.std() > 0.01 and expected.abs().max() < 1
    assert expected.shape == (2, 12 * 160 + 32)
    assert relative(vocoder(mel), expected) < 1e-4
    assert "5, 4, 2, 2, 2" in found.assumed[0]


def test_true_names_and_shapes() -> None:
    """The released sizes: every name has its place and the counts are the published ones; no weight is drawn."""
    with init_empty_weights():
        originals = OriginalUNet(), OriginalVae(), OriginalVocoder()
        parts = (
            unet_from_original(originals[0].state_dict(), None, 256, "unet"),
            vae_from_original(originals[1].state_dict(), 1.0, "vae"),
        )
        modules = [UNet2DConditionModel(**parts[0].config), AutoencoderKL(**parts[1].config)]
    for part, module in zip(parts, modules, strict=True):
        shapes = {name: value.shape for name, value in module.state_dict().items()}
        assert {name: value.shape for name, value in part.state.items()} == shapes
    counts = [sum(p.numel() for p in module.parameters()) / 1e6 for module in modules]
    assert counts == pytest.approx([185.04, 55.38], abs=0.006)
    assert parts[0].config["attention_head_dim"] == [4, 8, 12, 20]
    assert parts[0].config["block_out_channels"] == [128, 256, 384, 640]
    assert parts[0].assumed and "32" in parts[0].assumed[0]


def test_the_papers_geometry() -> None:
    """128 bins, a VAE that shrinks by 8, 16 channels: 185.05 M and 223.5 M parameters."""
    with init_empty_weights():
        unet = unet_from_original(OriginalUNet(channels=16).state_dict(), None, 128, "unet")
        vae = vae_from_original(OriginalVae(levels=(1, 2, 4, 8), z=16).state_dict(), 1.0, "vae")
        made = UNet2DConditionModel(**unet.config), AutoencoderKL(**vae.config)
    counts = [sum(p.numel() for p in module.parameters()) / 1e6 for module in made]
    assert counts == pytest.approx([185.05, 223.5], abs=0.06)


def test_what_is_not_of_this_kind_is_refused() -> None:
    state = OriginalUNet(32, (1, 2), 1, head=16, cond=24).state_dict()
    with pytest.raises(MusiccmError, match="head"):
        unet_from_original(state, None, 16, "file.ckpt")
    with pytest.raises(MusiccmError, match=r"file\.ckpt.*label_emb\.weight"):
        unet_from_original({**state, "label_emb.weight": torch.ones(2, 2)}, 16, 16, "file.ckpt")
    with pytest.raises(MusiccmError, match="in_layers.1"):
        unet_from_original({**state, "middle_block.0.in_layers.1.weight": torch.ones(1)}, 16, 16, "f")
    short = unet_from_original({k: v for k, v in state.items() if k != "middle_block.2.in_layers.2.bias"}, 16, 16, "f")
    with pytest.raises(MusiccmError, match="mid_block.resnets.1.conv1.bias is missing"):
        short.build(lambda config: UNet2DConditionModel(**config), "f")
    vae = OriginalVae(32, (1, 2), 1, 4).state_dict()
    with pytest.raises(MusiccmError, match="attention outside the middle"):
        vae_from_original({**vae, "encoder.down.1.attn.0.q.weight": torch.ones(1)}, 1.0, "v")
    broken = vae_from_original({**vae, "quant_conv.bias": torch.full((8,), float("nan"))}, 1.0, "v")
    with pytest.raises(MusiccmError, match="NaN"):
        broken.build(lambda config: AutoencoderKL(**config), "v")
    with pytest.raises(MusiccmError, match="vocoder-config"):
        state = OriginalVocoder(8, 64).state_dict()
        vocoder_from_original({**state, "ups.0.weight_v": torch.ones(64, 32, 15)}, None, "v")
