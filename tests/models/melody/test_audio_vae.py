"""The audio VAE: published numbers, what it can see, decoding as latents come, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.long_form import DirectDecoder, piece_decoder
from musiccm.models.bundle.files import load_part, save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.waveform_layers import Conv, Upsample

#: Six samples a frame; the decoder's kernels differ from its strides by odd and by even numbers, as the published do.
SMALL: dict[str, Any] = {
    "sample_rate_hz": 8000, "latent_channels": 3, "strides": [2, 3], "kernel_sizes": [5, 7], "channels": [4, 6],
    "depths": [1, 2], "decoder_strides": [3, 2], "decoder_kernel_sizes": [5, 7], "decoder_channels": [8, 6],
    "decoder_depths": [1, 1], "residual_kernel_sizes": [3, 5], "residual_dilations": [[1, 3], [1]],
}


@pytest.fixture(scope="module")
def vae() -> AudioVae:
    torch.manual_seed(0)
    return AudioVae(SMALL).eval().requires_grad_(False)


def latents(frames: int, seed: int = 1) -> torch.Tensor:
    return 0.4 * torch.randn(3, frames, 1, generator=torch.Generator().manual_seed(seed))


def test_the_full_size_is_the_papers() -> None:
    """24 kHz / 96 = 250 Hz x 16; 40 M and 60.1 M parameters, of which ours differ by 0.1 and 0.3 %."""
    with torch.device("meta"):
        full = AudioVae({})
        mean, std = full.encode(torch.empty(2, 960), 24000)
        sound = full.decode(torch.empty(2, 16, 10, 1))
    assert full.config.sample_rate_hz / full.frame_samples == 250
    assert mean.shape == std.shape == (2, 16, 10, 1) and sound.shape == (2, 960)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (full.encoder, full.decoder))
    assert encoder == pytest.approx(40e6, rel=0.002) and decoder == pytest.approx(60.1e6, rel=0.003)
    # the first layers and the map to two sequences of 16, as the appendix has them
    convolutions = [layer for layer in full.encoder.layers if isinstance(layer, Conv)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (32, 1, 5), (64, 32, 7), (128, 64, 9), (256, 128, 9), (32, 256, 7)]
    assert full.receptive_field == 17  # 68 ms
    assert full.latent_shape(10.0) == (16, 2500, 1)


@pytest.mark.parametrize(("stride", "size"), [(2, 5), (3, 3), (3, 5), (4, 9), (5, 7)])
def test_strides_divide_and_multiply_lengths_exactly(stride: int, size: int) -> None:
    x = torch.zeros(1, 2, 7 * stride)
    assert Conv(2, 3, size, stride)(x).shape == (1, 3, 7)
    for taps in (size, size + 1):  # by an odd and by an even number more than the stride
        assert Upsample(2, 3, taps, stride)(torch.zeros(1, 2, 7)).shape == (1, 3, 7 * stride)


@pytest.mark.parametrize("changes", [
    {}, {"decoder_strides": [2, 3], "decoder_kernel_sizes": [2, 4]}, {"decoder_depths": [0, 2], "edge_kernel_size": 1},
])
def test_a_frame_changes_the_sound_within_the_receptive_field_and_at_its_end(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vae = AudioVae({**SMALL, **changes}).double().requires_grad_(False)
    z, hop, at, field = latents(61).double()[None], vae.frame_samples, 30, vae.receptive_field
    other = z.clone()
    other[:, :, at] += 0.1
    # before the rounding of the output to float32
    decoded = []
    vae.decoder.layers[-1].register_forward_hook(lambda _, given, found: decoded.append(found[0, 0]))
    vae.decode(z), vae.decode(other)
    frames = (decoded[0] - decoded[1]).abs().view(-1, hop).amax(dim=1).nonzero().flatten()
    assert max(at - int(frames.min()), int(frames.max()) - at) == field
    assert field < 20


def test_a_latent_depends_on_samples_within_the_encoders_receptive_field_and_at_its_end() -> None:
    torch.manual_seed(0)
    vae = AudioVae(SMALL).double()
    sound = torch.randn(1, 81 * vae.frame_samples, dtype=torch.float64, requires_grad=True)
    vae.encoder(sound)[0, :, 40].sum().backward()
    assert sound.grad is not None
    seen = sound.grad[0].nonzero().flatten() // vae.frame_samples
    assert max(40 - int(seen.min()), int(seen.max()) - 40) == vae.encoder_receptive_field < 30


@pytest.mark.parametrize(("cuts", "window"), [([], 1), ([], 40), ([3, 4, 30], 7), ([1, 25, 39], 13)])
def test_decoding_by_windows_is_decoding_the_whole(vae: AudioVae, cuts: list[int], window: int) -> None:
    z, borders = latents(40), [0, *cuts, 40]
    decoder = piece_decoder(vae, window, 40)
    parts = [decoder.push(z[:, a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    torch.testing.assert_close(torch.cat(parts), vae.decode(z[None])[0], rtol=0, atol=1e-6)


def test_windows_with_too_little_context_are_not_the_whole(vae: AudioVae) -> None:
    """What the last frames of the receptive field do is less than rounding; they are seen in double precision above."""
    z, decoder = latents(40), DirectDecoder(vae, 10, 40)
    decoder._context = 1
    assert (decoder.push(z) - vae.decode(z[None])[0]).abs().max() > 1e-4


def test_a_stream_holds_a_bounded_number_of_latents_and_is_behind_by_the_receptive_field(vae: AudioVae) -> None:
    decoder, z, sounds = DirectDecoder(vae, 8, None), latents(200), []
    held = 0
    for start in range(0, 200, 4):
        sounds.append(decoder.push(z[:, start : start + 4]))
        assert decoder._z is not None
        held = max(held, decoder._z.shape[1])
    sound = torch.cat(sounds)
    assert len(sound) == (200 - vae.receptive_field) * vae.frame_samples
    assert held <= 2 * vae.receptive_field + 4
    torch.testing.assert_close(sound, vae.decode(z[None])[0, : len(sound)], rtol=0, atol=1e-6)


def test_latents_are_divided_and_clipped(vae: AudioVae) -> None:
    raw = torch.tensor([-6.0, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5]).view(1, 1, 7, 1)
    assert vae.normalise(raw)[0, 2].flatten().tolist() == [-1.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0]
    assert vae.clipped(raw).item() == pytest.approx(2 / 7)
    inside = latents(5)[None]
    torch.testing.assert_close(vae.normalise(vae.denormalise(inside)), inside)
    # a sampler that overshoots
    assert torch.equal(vae.decode(5.0 * torch.ones(1, 3, 4, 1)), vae.decode(torch.ones(1, 3, 4, 1)))


def test_latents_of_known_moments_have_unit_deviation_and_sound_as_before(vae: AudioVae, tmp_path: Any) -> None:
    other, raw = copy.deepcopy(vae), 2.0 * torch.randn(8, 3, 500, 1, generator=torch.Generator().manual_seed(4)) + 0.5
    bounded = (raw / 3.0).clamp(-1, 1)
    other.set_moments(bounded.mean((0, 2, 3)), bounded.std((0, 2, 3)))
    z = other.normalise(raw)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(other.denormalise(z), 3.0 * bounded)
    torch.testing.assert_close(other.decode(z), vae.decode(vae.normalise(raw)))
    save_part(tmp_path, "audio_vae", other)
    torch.testing.assert_close(load_part(tmp_path, "audio_vae").normalise(raw), z)
    other.set_divisor(2.0)  # they were those of the other divisor
    assert other.config.latents_std is None
    torch.testing.assert_close(other.normalise(raw), (raw / 2.0).clamp(-1, 1))
    for mean, std in (([0.0] * 3, None), ([0.0] * 2, [1.0] * 2), ([0.0] * 3, [1.0, 0.0, 1.0])):
        with pytest.raises(MusiccmError, match="latents_mean and latents_std"):
            AudioVae({**SMALL, "latents_mean": mean, "latents_std": std})


def test_another_divisor_changes_what_is_clipped_and_no_sound(vae: AudioVae, tmp_path: Any) -> None:
    other, raw = copy.deepcopy(vae), latents(9)[None]
    other.set_divisor(5.0)
    torch.testing.assert_close(other.normalise(torch.full((1, 3, 1, 1), 4.0)), torch.full((1, 3, 1, 1), 0.8))
    torch.testing.assert_close(other.decode(other.normalise(raw)), vae.decode(vae.normalise(raw)))
    # as a part of a bundle
    save_part(tmp_path, "audio_vae", other)
    read = load_part(tmp_path, "audio_vae")
    assert read.config == other.config and read.config.divisor == 5.0 and not read.training
    assert torch.equal(read.decode(raw), other.decode(raw))
    with pytest.raises(MusiccmError, match="divisor above 0"):
        other.set_divisor(0.0)


def test_the_posterior_begins_at_the_scale_of_sound(vae: AudioVae) -> None:
    """A waveform of RMS 0.1 gives latents of about 1 with the posterior that is asked for, and sound of about 0.1."""
    fresh = AudioVae({})
    fresh.start_posterior_at(0.05)
    sound = 0.1 * torch.randn(1, 96 * 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, std = fresh.encode(sound, 24000)
        decoded = fresh.decode(fresh.normalise(mean))
    torch.testing.assert_close(std, torch.full_like(std, 0.05))
    assert 0.3 < mean.std() < 2.0 and 0.02 < decoded.std() < 0.3


def test_sound_is_padded_to_whole_frames_on_request_alone(vae: AudioVae) -> None:
    sound = torch.randn(2, 20)
    padded = vae.to_grid(sound)
    assert padded.shape == (2, 24) and torch.equal(padded[:, :20], sound) and padded[:, 20:].abs().sum() == 0
    assert vae.encode(padded, 8000)[0].shape == (2, 3, math.ceil(20 / 6), 1)
    assert torch.equal(vae.to_grid(padded), padded)


@pytest.mark.parametrize(("sound", "rate_hz", "message"), [
    (torch.zeros(1, 20), 8000, "multiple of 6 samples.*found 20; crop to 18 samples or pad to 24"),
    (torch.zeros(1, 5), 8000, "found 5; pad to 6"),
    (torch.zeros(1, 0), 8000, "found 0; pad to 6"),
    (torch.zeros(1, 2, 12), 8000, r"mono waveforms of shape \[B, S\], found \(1, 2, 12\); mix"),
    (torch.zeros(12), 8000, "mono waveforms"),
    (torch.zeros(1, 12), 16000, "expected sound at 8000 Hz, found 16000 Hz; resample"),
])
def test_sound_that_does_not_fit_is_refused(vae: AudioVae, sound: torch.Tensor, rate_hz: int, message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        vae.encode(sound, rate_hz)


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 4, 1), (1, 3, 4, 2)])
def test_latents_of_another_shape_are_refused(vae: AudioVae, shape: tuple[int, ...]) -> None:
    with pytest.raises(MusiccmError, match=r"latents of shape \[B, 3, T, 1\]"):
        vae.decode(torch.zeros(shape))


@pytest.mark.parametrize(("changes", "message"), [
    ({"decoder_strides": [2, 2]}, r"same product, found \[2, 3\] \(6\) and \[2, 2\] \(4\)"),
    ({"channels": [4]}, r"a number for each layer, found strides \[2, 3\]"),
    ({"decoder_depths": [1, -1]}, "decoder_strides from 2, decoder_depths from 0"),
    ({"strides": [6, 1]}, "strides from 2"),
    ({"kernel_sizes": [4, 7]}, "odd kernel_sizes"),
    ({"edge_kernel_size": 2}, "odd kernel_sizes"),
    ({"decoder_kernel_sizes": [2, 7]}, "at least as long as the strides"),
    ({"residual_dilations": [[1]]}, "dilations for each"),
    ({"divisor": -3.0}, "divisor above 0"),
    ({"stride": [2]}, "unknown key.*stride"),
])
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        AudioVae({**SMALL, **changes})
