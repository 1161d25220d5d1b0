"""The losses of the stages against closed forms and other implementations."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio
from timm.layers import PatchEmbed
from torch.distributions import Normal, kl_divergence

from musiccm.diffusion import to_x0
from musiccm.losses.contrastive import info_nce, recall_at_k
from musiccm.losses.denoising import denoising_loss, min_snr_weight, stratified_timesteps
from musiccm.losses.masked import masked_patch_loss, patchify, random_keep
from musiccm.losses.reconstruction import gaussian_kl, mel_reconstruction
from musiccm.losses.spectral import MagnitudeDistance, MultiResolutionStft


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mel_reconstruction_of_an_offset_and_of_a_ramp():
    target = torch.randn(2, 6, 5, generator=seeded())
    total, parts = mel_reconstruction(target - 0.5, target, l1_weight=1.0, l2_weight=2.0, gradient_weight=3.0)
    assert parts["l1"] == pytest.approx(0.5, rel=1e-5) and parts["l2"] == pytest.approx(0.25, rel=1e-5)
    assert parts["gradient"] == pytest.approx(0.0, abs=1e-6)
    assert total == pytest.approx(1.0, rel=1e-5)
    ramp = 0.25 * torch.arange(6.0).view(1, 6, 1)  # slope along time only
    assert mel_reconstruction(target + ramp, target)[1]["gradient"] == pytest.approx(0.25, rel=1e-5)


def test_gaussian_kl_equals_torch_distributions():
    mean, logvar = torch.randn(2, 3, 4, 5, generator=seeded(1)), torch.randn(2, 3, 4, 5, generator=seeded(2))
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_info_nce_of_orthonormal_and_of_collapsed_pairs(scale: float):
    pairs = torch.eye(6)
    total, parts = info_nce(pairs, pairs, scale)
    expected = math.log(1.0 + 5.0 * math.exp(-scale))
    assert total == pytest.approx(expected, rel=1e-4)
    assert parts["text_to_audio"] == pytest.approx(expected, rel=1e-4)
    same = torch.ones(6, 4) / 2.0
    assert info_nce(same, same, scale)[0] == pytest.approx(math.log(6), rel=1e-5)


def test_recall_counts_rivals_and_gives_nothing_for_a_collapsed_space():
    eye = torch.eye(8)
    assert recall_at_k(eye, eye, 1) == 1.0
    assert recall_at_k(torch.ones(8, 3), torch.ones(8, 3), 1) == 0.0
    items = eye.clone()
    items[0] = eye[0] + 0.9 * eye[1]  # text 1 is closer to its own item than to item 0, text 0 has no rival
    assert recall_at_k(eye, items, 1) == 1.0
    swapped = eye[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert recall_at_k(eye, swapped, 1) == 6 / 8


def test_stft_loss_of_equal_and_of_halved_waveforms():
    loss = MultiResolutionStft((64, 256), floor=1e-7)
    wave = torch.randn(2, 2000, generator=seeded())
    assert loss(wave, wave)[0] == 0.0
    _, parts = loss(0.5 * wave, wave)
    assert parts["convergence"] == pytest.approx(0.5, rel=1e-4)
    assert parts["log_magnitude"] == pytest.approx(math.log(2), rel=1e-3)


def test_stft_loss_has_finite_gradients_at_silence():
    silent = torch.zeros(1, 2000, requires_grad=True)
    MultiResolutionStft((64, 256))(silent, torch.randn(1, 2000, generator=seeded()))[0].backward()
    assert torch.isfinite(silent.grad).all()


def test_magnitudes_of_a_pure_tone_are_half_its_amplitude_times_the_windows_sum():
    """A Hann window of N / 2 samples sums to N / 4: a tone of amplitude a on bin k has magnitude a N / 8 there."""
    size, amplitude, k = 256, 0.3, 32
    tone = amplitude * torch.cos(2 * math.pi * k / size * torch.arange(2048.0)).view(1, -1)
    loss = MagnitudeDistance([size])
    magnitude = loss.magnitude(tone, size)[0]
    inner = magnitude[:, 4:-4]  # the padding reflects the tone, which breaks its phase
    assert magnitude.shape == (129, 2048 // 64 + 1)
    torch.testing.assert_close(inner[k], torch.full_like(inner[k], amplitude * size / 8), rtol=1e-4, atol=0)
    # a bin of the transform is half a bin of the window: two of them away, the Hann window has half of it left
    torch.testing.assert_close(inner[k + 2], 0.5 * inner[k], rtol=1e-3, atol=0)
    # magnitudes are linear: a tone that is half as loud is half of them off
    total, parts = loss(0.5 * tone, tone)
    assert total.item() == pytest.approx(0.5 * magnitude.mean().item(), rel=1e-3) and parts[f"stft_{size}"] == total


def test_the_sum_over_resolutions_is_that_of_torchaudios_magnitudes():
    predicted, target = torch.randn(2, 2, 3000, generator=seeded())
    sizes, expected = (1024, 256, 32), torch.zeros(())
    for size in sizes:
        spectrogram = torchaudio.transforms.Spectrogram(size, size // 2, size // 4, power=1.0)
        expected = expected + (spectrogram(predicted) - spectrogram(target)).abs().mean()
    total, parts = MagnitudeDistance(sizes)(predicted, target)
    torch.testing.assert_close(total, expected)
    assert list(parts) == ["stft_1024", "stft_256", "stft_32"]
    assert MagnitudeDistance().fft_sizes == (8192, 4096, 2048, 512, 128, 64, 32)


def test_patches_come_in_the_order_of_timm():
    image = torch.randn(2, 1, 8, 12, generator=seeded())
    embed = PatchEmbed((8, 12), 4, 1, 16, bias=False)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(16).view(16, 1, 4, 4))
    torch.testing.assert_close(patchify(image, 4), embed(image))


def test_masked_loss_sees_hidden_patches_only():
    target = torch.randn(3, 10, 16, generator=seeded())
    keep, hidden = random_keep(3, 10, 0.8, seeded())
    assert keep.shape == (3, 2) and hidden.sum(dim=1).tolist() == [8.0] * 3
    assert hidden.gather(1, keep).sum() == 0
    perfect = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    assert masked_patch_loss(perfect, target, hidden) < 1e-9
    spoilt = perfect + 5.0 * (1.0 - hidden).unsqueeze(-1)
    assert masked_patch_loss(spoilt, target, hidden) < 1e-9
    # predicting the mean leaves the variance: 15/16 with the unbiased normalisation
    assert masked_patch_loss(torch.zeros_like(target), target, hidden) == pytest.approx(15 / 16, rel=1e-4)


def test_stratified_timesteps_take_one_of_each_slice():
    t = stratified_timesteps(10, 1000, seeded())
    assert sorted((t // 100).tolist()) == list(range(10))


def test_min_snr_weights_and_loss():
    alpha, sigma = torch.tensor([0.8, 0.6]), torch.tensor([0.2, 0.8])  # SNR 16 and 0.5625
    torch.testing.assert_close(min_snr_weight(alpha, sigma, 5.0), torch.tensor([5 / 16, 1.0]))
    # an error of v, 0.2, of the flow or of x0 itself weighs as the error of x0 that it makes
    alpha_B, sigma_B, z, right = torch.tensor([0.96, 0.28]), torch.tensor([0.28, 0.96]), torch.zeros(2), torch.zeros(2)
    snr = (alpha_B / sigma_B) ** 2
    for kind in ("epsilon", "v_prediction", "sample", "flow_prediction"):
        error = (to_x0(kind, right + 0.2, z, alpha_B, sigma_B) - to_x0(kind, right, z, alpha_B, sigma_B)).square()
        weighted = min_snr_weight(alpha_B, sigma_B, 5.0, kind) * 0.2**2
        torch.testing.assert_close(weighted, snr.clamp(max=5.0) * error)
    noise = torch.randn(2, 3, 4, 2, generator=seeded())
    predicted = noise + torch.tensor([2.0, 1.0]).view(2, 1, 1, 1)
    total, parts = denoising_loss(predicted, noise, alpha, sigma, 5.0)
    assert total == pytest.approx((4.0 * 5 / 16 + 1.0) / 2, rel=1e-5)
    noisy, _ = denoising_loss(predicted, noise, alpha, sigma, 5.0, noise_emphasis=1.0)
    assert noisy == pytest.approx((4.0 * 5 / 16 / 0.8 + 1.0 / 0.6) / 2, rel=1e-5)
    torch.testing.assert_close(parts["mse_B"], torch.tensor([4.0, 1.0]))
