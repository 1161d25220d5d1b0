"""Discriminators of waveforms on complex spectrograms or on magnitudes, one a resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class _OneResolution(nn.Module):
    """Convolutions over frames and bins of one STFT; the first keeps a fourth of the bins, time is kept."""

    window: Tensor

    def __init__(self, fft_size: int, width: int, hop_share: float) -> None:
        super().__init__()
        self.fft_size, self.hop_length = fft_size, int(hop_share * fft_size)
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        widths = [2, width, 2 * width, 2 * width, 2 * width]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 2 * stride + 1), stride=(1, stride), padding=(1, stride)))
            for stride, a, b in zip((4, 2, 2, 2), widths, widths[1:], strict=False)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = torch.stft(waveform_BS.float(), self.fft_size, self.hop_length, window=self.window,
                              normalized=True, return_complex=True)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.score(x), features


class SpectrogramDiscriminator(nn.Module):
    """Several resolutions side by side, as EnCodec's MS-STFT discriminator (Defossez et al. 2022, arXiv 2210.13438).

    Args:
        fft_sizes: Window lengths in samples.
        width: Channels of the first layer; later ones have twice as many.
        hop_share: Hops, as a share of the windows.
    """

    def __init__(
        self, fft_sizes: Sequence[int] = (2048, 1024, 512), width: int = 32, hop_share: float = 0.25
    ) -> None:
        super().__init__()
        self.resolutions = nn.ModuleList(_OneResolution(size, width, hop_share) for size in fft_sizes)

    def forward(self, waveform_BS: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Judge.

        Args:
            waveform_BS: Waveforms.

        Returns:
            For each resolution the scores `[B, 1, frames, bins / 32]` and the features before them.
        """
        return [resolution(waveform_BS) for resolution in self.resolutions]


class MagnitudeDiscriminator(nn.Module):
    """Convolutions over frames and bins of the magnitudes of one STFT.

    UnivNet (Jang et al. 2021, arXiv 2106.07889, section 2.2): layers of 3 frames x 9 bins, of which three halve the
    bins, and one of 3 x 3, all of one width.

    Args:
        fft_size: Points of the transform.
        hop_length: Samples between frames.
        window_length: Samples of the window.
        width: Channels.
    """

    window: Tensor

    def __init__(self, fft_size: int, hop_length: int, window_length: int, width: int = 32) -> None:
        super().__init__()
        self.fft_size, self.hop_length, self.window_length = fft_size, hop_length, window_length
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)
        shapes = [(9, 1), (9, 2), (9, 2), (9, 2), (3, 1)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(width if n else 1, width, (3, bins), stride=(1, stride), padding=(1, bins // 2)))
            for n, (bins, stride) in enumerate(shapes)
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, waveform_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores `[B, 1, frames, bins / 8]` and the features before them."""
        spectrum = torch.stft(waveform_BS.float(), self.fft_size, self.hop_length, self.window_length, self.window,
                              return_complex=True)
        # in quadrature, as the derivative of a magnitude of zero is undefined
        x = (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt().transpose(1, 2).unsqueeze(1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features
