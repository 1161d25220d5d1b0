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
        fft_sizes: window lengths in samples.
        hop_ratio: hop as a share of the window.
        floor: added to magnitudes in quadrature, or silence would dominate the logarithm. Clamping would leave a silent
            prediction without a gradient, and a network that starts silent would stay so.
    """

    def __init__(self, fft_sizes: Sequence[int] = (256, 512, 1024, 2048), hop_ratio: float = 0.25, floor: float = 1e-4):
        super().__init__()
        self.fft_sizes = tuple(fft_sizes)
        self.hop_ratio = hop_ratio
        self.floor = floor
        for size in self.fft_sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def magnitude(self, waveform_BS: Tensor, size: int) -> Tensor:
        """STFT magnitude with its floor, [B, size // 2 + 1, frames]."""
        window = self.get_buffer(f"window_{size}")
        hop = max(1, int(size * self.hop_ratio))
        spectrum = torch.stft(waveform_BS.float(), size, hop, window=window, return_complex=True)
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
