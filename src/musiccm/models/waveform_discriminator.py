"""Discriminators of waveforms in the time domain and on magnitudes, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from musiccm.models.spectrogram_discriminator import MagnitudeDiscriminator


class PeriodDiscriminator(nn.Module):
    """Every `period`-th sample in a row: convolutions along the rows, alike for all phases.

    HiFi-GAN (Kong et al. 2020, arXiv 2010.05646, section 2.3): five taps, strides of 3, the last layer without one.

    Args:
        period: Samples between neighbours of a row.
        widths: Channels of the strided layers; one more layer keeps the last width.
    """

    def __init__(self, period: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        sizes = [1, *widths, widths[-1]]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(1 if n == len(widths) else 3, 1), padding=(2, 0)))
            for n, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores `[B, 1, rows, period]` and the features before them."""
        missing = -waveform_BS.shape[1] % self.period
        x = F.pad(waveform_BS.unsqueeze(1), (0, missing), mode="reflect").unflatten(2, (-1, self.period))
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.score(x), features


class WaveformDiscriminator(nn.Module):
    """HiFi-GAN's periods beside UnivNet's resolutions.

    Args:
        periods: Of the `PeriodDiscriminator`s, without common divisors.
        period_widths: Channels of their strided layers.
        resolutions: FFT size, hop and window of each `MagnitudeDiscriminator`, in samples.
        width: Channels of their layers.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_widths: Sequence[int] = (32, 128, 512, 1024),
        resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        width: int = 32,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList([
            *(PeriodDiscriminator(period, period_widths) for period in periods),
            *(MagnitudeDiscriminator(size, hop, window, width) for size, hop, window in resolutions),
        ])
        self.fft_sizes = [size for size, _, _ in resolutions]

    def forward(self, waveform_BS: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Score.

        Args:
            waveform_BS: Waveforms.

        Returns:
            Of each discriminator the scores and the features before them.
        """
        return [part(waveform_BS) for part in self.parts]
