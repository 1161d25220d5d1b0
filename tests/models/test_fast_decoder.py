"""The fast decoder: its inverse STFT against the forward one, what it can see, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.fast_decoder import FastDecoder, overlap_add

SMALL = {"latent_channels": 3, "latent_bins": 4, "latent_hop": 80, "hop_length": 20, "n_fft": 80, "width": 16,
         "hidden": 24, "latent_blocks": 1, "blocks": 2}


@pytest.fixture(scope="module")
def decoder() -> FastDecoder:
    torch.manual_seed(0)
    return FastDecoder(SMALL).eval()


@pytest.mark.parametrize("hop", [3, 4, 7, 8])
def test_overlap_add_equals_a_loop(hop: int) -> None:
    frames = torch.randn(2, 5, 8)
    expected, start = torch.zeros(2, 4 * hop + 8), (8 - hop) // 2
    for n in range(5):
        expected[:, n * hop : n * hop + 8] += frames[:, n]
    torch.testing.assert_close(overlap_add(frames, hop), expected[:, start : start + 5 * hop])


def test_synthesis_inverts_the_spectrum_of_any_sound(decoder: FastDecoder, device: str) -> None:
    c, decoder = decoder.config, copy.deepcopy(decoder).to(device)
    wave = torch.randn(1, 30 * c.hop_length, generator=torch.Generator().manual_seed(1))
    side = (c.n_fft - c.hop_length) // 2
    frames = torch.nn.functional.pad(wave, (side, side)).unfold(1, c.n_fft, c.hop_length) * torch.hann_window(c.n_fft)
    spectrum = torch.fft.rfft(frames, norm="ortho")
    heads = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=-1)
    found = decoder.synthesise(heads.to(device)).cpu()
    inner = slice(c.n_fft, -c.n_fft)
    torch.testing.assert_close(found[:, inner], wave[:, inner], atol=1e-4, rtol=1e-4)


def test_a_frame_is_heard_within_reach_and_nowhere_else(decoder: FastDecoder, device: str) -> None:
    c, frames, changed = decoder.config, 40, 20
    decoder = copy.deepcopy(decoder).to(device)
    latents = torch.randn(1, c.latent_channels, frames, c.latent_bins).to(device)
    other = latents.clone()
    other[:, :, changed] += 1.0
    with torch.no_grad():
        difference = (decoder(latents) - decoder(other)).abs().view(frames, c.latent_hop).amax(dim=1)
    heard = difference.nonzero().flatten()
    assert difference[changed] > 0
    assert changed - decoder.receptive_field <= heard.min() and heard.max() <= changed + decoder.receptive_field


def test_length_and_round_trip_through_a_folder(decoder: FastDecoder, tmp_path) -> None:
    latents = torch.randn(2, 3, 7, 4)
    assert decoder(latents).shape == (2, 7 * 80)
    decoder.save_pretrained(tmp_path)
    torch.testing.assert_close(FastDecoder.from_pretrained(tmp_path)(latents), decoder(latents))


def test_the_full_size_decoder_costs_less_than_40_gflop() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        full, latents = FastDecoder({}), torch.empty(1, 8, 256, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert full(latents).shape == (1, 256 * 640)
    assert 20e9 < counter.get_total_flops() < 40e9


@pytest.mark.parametrize("wrong", [{"hop_length": 30}, {"kernel_size": 4}, {"n_fft": 10}])
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(MusiccmError, match="fast decoder: expected an odd kernel_size"):
        FastDecoder({**SMALL, **wrong})


def test_latents_of_another_vae_are_refused(decoder: FastDecoder) -> None:
    with pytest.raises(MusiccmError, match="3 channels and 4 bins"):
        decoder(torch.zeros(1, 3, 7, 5))
