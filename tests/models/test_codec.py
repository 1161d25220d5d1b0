"""The codec's conventions, against the library's own classes called by hand."""

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_bundle import make_decoder, make_vae, make_vocoder

from musiccm.audio.mel import MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.codec import LatentCodec


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(make_vae(), make_vocoder())


def test_unshuffle_puts_neighbouring_frames_in_channels(codec: LatentCodec, device: str) -> None:
    codec, mel = codec.to(device), torch.randn(2, 32, 64, device=device)
    image = torch.stack([mel[:, i::2, j::2] for i in range(2) for j in range(2)], dim=1)
    posterior = codec.vae.encode(image).latent_dist
    mean, std = codec.encode(mel)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)
    assert mean.shape == (2, 4, 2, 4)


def test_decode_inverts_the_order_of_the_unshuffle(codec: LatentCodec, device: str) -> None:
    codec, z = codec.to(device), torch.randn(1, 4, 2, 4, device=device)
    std, mean = torch.tensor([[1.5, 0.5, 1.0, 2.0], [0.1, -0.2, 0.3, 0.0]], device=device).view(2, 1, 4, 1, 1)
    raw = z * std + mean
    image = codec.vae.decode(raw).sample
    mel = codec.decode_mel(z)
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(mel[:, i::2, j::2], image[:, 2 * i + j])
    torch.testing.assert_close(codec.normalise(raw), z)


def test_scaling_factor_where_there_are_no_statistics() -> None:
    vae = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), latent_channels=4, norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
                        scaling_factor=0.25)
    codec = LatentCodec(vae)
    raw = torch.randn(1, 4, 3, 5)
    torch.testing.assert_close(codec.normalise(raw), raw * 0.25)
    torch.testing.assert_close(codec.denormalise(raw), raw / 0.25)


def test_gradients_reach_the_latents_and_no_weight(codec: LatentCodec, device: str) -> None:
    codec.to(device).train()
    z = torch.randn(1, 4, 4, 4, requires_grad=True, device=device)
    codec.decode(z).square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(p.grad is None for p in codec.parameters())
    assert not codec.vae.training


def test_time_crop_is_decoding_of_the_crop(codec: LatentCodec) -> None:
    z = torch.randn(1, 4, 8, 4)
    torch.testing.assert_close(codec.decode_mel(z, slice(2, 5)), codec.decode_mel(z[:, :, 2:5]))
    assert codec.decode_mel(z, slice(2, 5)).shape == (1, 48, 64)


@pytest.mark.parametrize("time, context, decoded, cut", [
    (slice(2, 5), 1, slice(1, 6), slice(16, 64)),  # latent frames 1 to 5, of 16 mel frames each
    (slice(0, 3), 2, slice(0, 5), slice(0, 48)),  # the clip's own ends are no cuts
    (slice(6, 8), 3, slice(3, 8), slice(48, 80)),
])
def test_context_is_decoded_and_cut_off(codec: LatentCodec, time, context, decoded, cut) -> None:
    z = torch.randn(1, 4, 8, 4, requires_grad=True)
    found = codec.decode_mel(z, time, context)
    torch.testing.assert_close(found, codec.decode_mel(z[:, :, decoded])[:, cut])
    torch.testing.assert_close(codec.decode_mel(z, time, 8), codec.decode_mel(z)[:, time.start * 16 : time.stop * 16])
    (gradient,) = torch.autograd.grad(found.square().sum(), z)
    heard = gradient.abs().sum((0, 1, 3)) > 0
    assert heard.nonzero().flatten().tolist() == list(range(8))[decoded]


def test_waveform_has_hop_samples_a_frame(codec: LatentCodec, device: str) -> None:
    codec, mel = codec.to(device), torch.randn(2, 10, 64, device=device)
    assert codec.vocoder(mel).shape == (2, 1632)
    torch.testing.assert_close(codec.vocode(mel), codec.vocoder(mel)[:, :1600])


def test_latent_shape_rounds_up(codec: LatentCodec) -> None:
    assert codec.latent_shape(5.12) == (4, 32, 4)
    assert codec.latent_shape(5.13) == (4, 33, 4)


def test_bad_input_is_refused(codec: LatentCodec) -> None:
    with pytest.raises(MusiccmError, match="multiple of 16"):
        codec.encode(torch.zeros(1, 30, 64))
    with pytest.raises(MusiccmError, match="64 bins"):
        codec.encode(torch.zeros(1, 32, 80))
    with pytest.raises(MusiccmError, match="no vocoder"):
        LatentCodec(make_vae()).vocode(torch.zeros(1, 16, 64))
    with pytest.raises(MusiccmError, match="model_in_dim"):
        LatentCodec(make_vae(), make_vocoder(), MelConfig(n_mels=80))
    with pytest.raises(MusiccmError, match="in_channels is 3"):
        LatentCodec(AutoencoderKL(in_channels=3, block_out_channels=(8,), norm_num_groups=4))
    with pytest.raises(MusiccmError, match="decoder/config.json: latent_hop is 2560, but the VAE's latents have 2000"):
        LatentCodec(make_vae(), mel=MelConfig(hop_length=125), decoder=make_decoder())
    with pytest.raises(MusiccmError, match="no fast decoder"):
        _ = codec.decoder_context


def test_the_fast_decoder_takes_unfolded_latents_with_unit_deviation(codec: LatentCodec) -> None:
    decoder = make_decoder()
    fast = LatentCodec(codec.vae, latent_patch=2, decoder=decoder)
    raw = torch.randn(2, 4, 6, 4)
    mean, deviation = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.5, 0.5, 1.0, 2.0])
    unit = (raw - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(fast.decode(fast.normalise(raw)), decoder(unit))
    assert fast.decoder_context == -(-decoder.receptive_field // 2)


def test_latent_patch_folds_blocks_of_raw_latents_into_channels(codec: LatentCodec) -> None:
    folded = LatentCodec(codec.vae, codec.vocoder, latent_patch=2)
    raw = torch.randn(2, 4, 6, 4)
    z, plain = folded.normalise(raw), codec.normalise(raw)
    blocks = torch.stack([plain[:, :, i::2, j::2] for i in range(2) for j in range(2)], dim=2).flatten(1, 2)
    torch.testing.assert_close(z, blocks)
    torch.testing.assert_close(folded.denormalise(z), raw)
    torch.testing.assert_close(folded.decode(z), codec.decode(plain))
    channels, frames, bins = codec.latent_shape(2.56)
    assert folded.latent_shape(2.56) == (4 * channels, frames // 2, bins // 2)
    assert folded.downsampling == 2 * codec.downsampling
