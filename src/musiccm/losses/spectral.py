"""Multi-resolution STFT loss for waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiResolutionStft(nn.Module):
    """Spectral convergence plus log-magnitude distance at several resolutions.

    Parallel WaveGAN (Yamamoto et al. 2020), equations 4-6: with S and S' the magnitudes of target and prediction,
    `|S - S'|_F / |S|_F + mean |log S - log S'|`, averaged over resolutions. Several window lengths together leave no
    single time-frequency trade-off to overfit; phase is free.

    Args:
        fft_sizes: points of the transforms, which are the windows' lengths in samples if `zero_padding` is 1.
        hop_ratio: hop as a share of the window.
        floor: added to magnitudes in quadrature, or silence would dominate the logarithm. Clamping would leave a silent
            prediction without a gradient, and a network that starts silent would stay so.
        zero_padding: points of the transform for each sample of the window.
    """

    def __init__(self, fft_sizes: Sequence[int] = (256, 512, 1024, 2048), hop_ratio: float = 0.25, floor: float = 1e-4,
                 zero_padding: int = 1):
        super().__init__()
        self.fft_sizes = tuple(fft_sizes)
        self.hop_ratio = hop_ratio
        self.floor = floor
        self.zero_padding = zero_padding
        for size in self.fft_sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size // zero_padding), persistent=False)

    def magnitude(self, waveform_BS: Tensor, size: int) -> Tensor:
        """STFT magnitude with its floor, [B, size // 2 + 1, frames]."""
        window = self.get_buffer(f"window_{size}")
        hop = max(1, int(len(window) * self.hop_ratio))
        spectrum = torch.stft(waveform_BS.float(), size, hop, len(window), window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + self.floor**2).sqrt()

    def forward(self, predicted_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare two batches of waveforms.

        Args:
            predicted_BS: waveforms, [B, S].
            target_BS: waveforms of the same shape.

        Returns:
            The sum and its parts `convergence` and `log_magnitude`, each a mean over resolutions.
        """
        convergence = predicted_BS.new_zeros(())
        log_magnitude = predicted_BS.new_zeros(())
        for size in self.fft_sizes:
            predicted, target = self.magnitude(predicted_BS, size), self.magnitude(target_BS, size)
            distance = torch.linalg.vector_norm(target - predicted, dim=(1, 2))
            convergence = convergence + (distance / torch.linalg.vector_norm(target, dim=(1, 2))).mean()
            log_magnitude = log_magnitude + F.l1_loss(predicted.log(), target.log())
        parts = {
            "convergence": convergence / len(self.fft_sizes),
            "log_magnitude": log_magnitude / len(self.fft_sizes),
        }
        return parts["convergence"] + parts["log_magnitude"], parts


class MagnitudeDistance(MultiResolutionStft):
    """Distance of linear magnitudes at several resolutions.

    MeLoDy (Lam et al. 2023, arXiv 2305.15719, appendix B.1): `sum_r mean | |STFT_r(x)| - |STFT_r(x')| |`, without a
    logarithm; windows of half the transform, hops of half the window. A loud partial weighs as much as it is loud.

    Args:
        fft_sizes: points of the transforms; by default MeLoDy's seven.
    """

    def __init__(self, fft_sizes: Sequence[int] = (8192, 4096, 2048, 512, 128, 64, 32)) -> None:
        super().__init__(fft_sizes, hop_ratio=0.5, zero_padding=2)

    def forward(self, predicted_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare two batches of waveforms.

        Args:
            predicted_BS: waveforms, [B, S].
            target_BS: waveforms of the same shape.

        Returns:
            The sum over resolutions, and its parts `stft_<size>`.
        """
        parts = {f"stft_{size}": F.l1_loss(self.magnitude(predicted_BS, size), self.magnitude(target_BS, size))
                 for size in self.fft_sizes}
        return torch.stack(list(parts.values())).sum(), parts
