"""Discriminators of waveforms on complex spectrograms, one a resolution."""

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
