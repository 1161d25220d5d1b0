"""An audio VAE with a fast decoder: the same latents, the decoder's sound, in windows as in the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_melody import VAE, build_random_melody

from musiccm.errors import MusiccmError
from musiccm.long_form import piece_decoder
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.fast_audio_vae import FastAudioVae
from musiccm.pipeline import Pipeline

DECODER = {"latent_channels": 4, "latent_bins": 1, "latent_hop": 64, "hop_length": 32, "n_fft": 128, "width": 8,
           "hidden": 12, "latent_blocks": 1, "blocks": 2}


def random_decoder(**changed: int) -> FastDecoder:
    torch.manual_seed(3)
    return FastDecoder({**DECODER, **changed}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> AudioVae:
    torch.manual_seed(0)
    vae = AudioVae(VAE).eval().requires_grad_(False)
    vae.set_moments(torch.tensor([0.1, 0.0, -0.1, 0.05]), torch.tensor([0.3, 0.2, 0.4, 0.25]))
    return vae


def test_latents_are_the_vaes_and_sound_is_the_decoders(vae: AudioVae) -> None:
    fast, decoder = FastAudioVae(vae, random_decoder()), random_decoder()
    sound_BS = 0.3 * torch.randn(2, 640)
    for got, expected in zip(fast.encode(sound_BS, 16000), vae.encode(sound_BS, 16000), strict=True):
        assert torch.equal(got, expected)
    raw_BCTF = vae.encode(sound_BS, 16000)[0]
    assert torch.equal(fast.normalise(raw_BCTF), vae.normalise(raw_BCTF))
    z_BCTF = 0.5 * torch.randn(2, 4, 10, 1)
    torch.testing.assert_close(fast.decode(z_BCTF), decoder(z_BCTF).clamp(-1, 1))
    assert (fast.decoded_by, vae.decoded_by) == ("fast", "original")


def test_what_lies_beyond_the_latents_bounds_is_clipped(vae: AudioVae) -> None:
    """As the VAE clips what its own decoder is given: |z * std + mean| <= 1."""
    fast = FastAudioVae(vae, random_decoder())
    edge_BCTF = ((torch.ones(1, 4, 6, 1) - vae.latents_mean) / vae.latents_std)
    torch.testing.assert_close(fast.decode(2.0 * edge_BCTF), fast.decode(edge_BCTF))
    assert not torch.allclose(fast.decode(0.5 * edge_BCTF), fast.decode(edge_BCTF))


def test_decoding_as_latents_come_is_decoding_the_whole(vae: AudioVae) -> None:
    fast = FastAudioVae(vae, random_decoder())
    z_CTF = 0.4 * torch.randn(4, 64, 1)
    stream = piece_decoder(fast, 16, 64)
    pieces = [stream.push(part) for part in z_CTF.split(8, dim=1)]
    torch.testing.assert_close(torch.cat(pieces), fast.decode(z_CTF[None])[0], atol=1e-5, rtol=0)


def test_a_decoder_of_other_latents_is_refused(vae: AudioVae) -> None:
    with pytest.raises(MusiccmError, match=r"decoder/config.json: latent_hop is 128, but the VAE's latents have 64"):
        FastAudioVae(vae, random_decoder(latent_hop=128))


def test_a_bundle_uses_it_where_it_has_one(tmp_path: Path) -> None:
    path = build_random_melody(tmp_path)
    with pytest.raises(MusiccmError, match="has no fast decoder .*melody/stages/decoder"):
        Bundle.from_pretrained(path).codec("fast")
    before = Pipeline.from_pretrained(path)("a tune", 2, 0)[0]
    save_part(path, "decoder", random_decoder())
    bundle = Bundle.from_pretrained(path)
    assert [bundle.codec(name).decoded_by for name in (None, "fast", "original")] == ["fast", "fast", "original"]
    own = Pipeline.from_pretrained(path, decoder="original")("a tune", 2, 0)[0]
    assert torch.equal(own, before), "the network draws the same latents"
    assert not torch.allclose(Pipeline.from_pretrained(path)("a tune", 2, 0)[0], own, atol=1e-3)
