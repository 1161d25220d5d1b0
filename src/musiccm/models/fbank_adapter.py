"""From the teacher's mel to the filter bank that a feature network was trained on, differentiably."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from musiccm.audio.mel import MelConfig


def mel_centres_hz(n_mels: int, fmin_hz: float, fmax_hz: float, scale: str) -> Tensor:
    """Centre frequencies of a triangular mel filter bank, [n_mels], float64.

    Args:
        n_mels: Number of filters.
        fmin_hz: Lower edge of the first filter.
        fmax_hz: Upper edge of the last.
        scale: `slaney` or `htk`.
    """
    return _edges_hz(n_mels, fmin_hz, fmax_hz, scale)[1:-1]


def _edges_hz(n_mels: int, fmin_hz: float, fmax_hz: float, scale: str) -> Tensor:
    low, high = hertz_to_mel(fmin_hz, scale), hertz_to_mel(fmax_hz, scale)
    return torch.as_tensor(mel_to_hertz(np.linspace(low, high, n_mels + 2), scale), dtype=torch.float64)


class FbankAdapter(nn.Module):
    """`y = (x W) * slope + offset`: interpolation along the Hz axis, then a gain of each bin.

    The source is the natural log of area-normalised mel *magnitudes*. Where the spectrum is smooth over a filter such a
    value is `ln(A(f) / df)`, A being the magnitude and df the bin spacing of its STFT, whatever the filter's width.
    A target that sums *power* under a triangle of another width, from another window, with or without pre-emphasis,
    differs from twice that by a constant of each bin, which is the offset. Tonal peaks between filter centres are
    smeared by the interpolation; nothing finer can be known from the mel.

    Args:
        weight_NP: Interpolation matrix, source bins by target bins.
        offset_P: Added after the slope.
        slope: 2 for log power from log magnitude, times 10 / ln 10 for decibels.
    """

    weight_NP: Tensor
    offset_P: Tensor

    def __init__(self, weight_NP: Tensor, offset_P: Tensor, slope: float) -> None:
        super().__init__()
        self.register_buffer("weight_NP", weight_NP.float(), persistent=False)
        self.register_buffer("offset_P", offset_P.float(), persistent=False)
        self.slope = slope

    def forward(self, mel_BMN: Tensor) -> Tensor:
        """Map a mel of N bins to the target's P bins, frame by frame."""
        return mel_BMN @ self.weight_NP * self.slope + self.offset_P

    @classmethod
    def identity(cls, n_mels: int) -> FbankAdapter:
        """For a network trained on this very mel."""
        return cls(torch.eye(n_mels), torch.zeros(n_mels), 1.0)

    @classmethod
    def to_kaldi(cls, source: MelConfig, bins: int = 128) -> FbankAdapter:
        """To the fbank of AudioMAE: Kaldi at 16 kHz, 25 ms Hann window, log power, HTK mel from 20 Hz to Nyquist.

        Kaldi's defaults otherwise: pre-emphasis 0.97, FFT of 512 points, filters without area normalisation.

        Args:
            source: The mel's front end, 16 kHz.
            bins: Filters of the target.
        """
        rate, frame, n_fft = 16000, 400, 512
        edges = _edges_hz(bins, 20.0, rate / 2, "htk")
        centres, widths = edges[1:-1], edges[2:] - edges[:-2]
        # A narrow filter sums power over few FFT bins, a wide one over many.
        summed = (widths / 2 / (rate / n_fft)).log()
        omega = 2 * math.pi * centres / rate
        emphasis = (1 + 0.97**2 - 2 * 0.97 * omega.cos()).log()
        offset = summed + emphasis + _energy_offset(source, rate, frame)
        return cls(_interpolation(source, centres), offset, 2.0)

    @classmethod
    def to_clap(
        cls, source: MelConfig, bins: int, fmin_hz: float, fmax_hz: float, n_fft: int, rate_hz: int, slaney: bool = True
    ) -> FbankAdapter:
        """To CLAP's features: power mel in decibels.

        Args:
            source: The mel's front end.
            bins: Filters of the target.
            fmin_hz: Lower edge of the target's first filter.
            fmax_hz: Upper edge of its last.
            n_fft: Points of its Fourier transform and Hann window.
            rate_hz: Its sampling rate.
            slaney: Slaney filters with area normalisation; else HTK without (fusion models).
        """
        edges = _edges_hz(bins, fmin_hz, fmax_hz, "slaney" if slaney else "htk")
        centres, widths = edges[1:-1], edges[2:] - edges[:-2]
        spacing = rate_hz / n_fft
        summed = torch.full_like(centres, -math.log(spacing)) if slaney else (widths / 2 / spacing).log()
        decibel = 10 / math.log(10)
        weight, offset = _interpolation(source, centres), summed + _energy_offset(source, rate_hz, n_fft)
        offset = offset * decibel
        # Resampled sound has nothing above its old Nyquist frequency: CLAP's extractor shows its floor there.
        silent = centres > source.sample_rate_hz / 2
        weight[:, silent], offset[silent] = 0.0, -100.0
        return cls(weight, offset, 2 * decibel)


def _interpolation(source: MelConfig, centres_hz: Tensor) -> Tensor:
    """Linear interpolation from the source's filter centres to other frequencies, [N, P]; the ends are held."""
    own = mel_centres_hz(source.n_mels, source.fmin_hz, source.fmax_hz, "slaney")
    upper = torch.searchsorted(own, centres_hz).clamp(1, source.n_mels - 1)
    share = ((centres_hz - own[upper - 1]) / (own[upper] - own[upper - 1])).clamp(0, 1)
    columns = torch.arange(len(centres_hz))
    weight = torch.zeros(source.n_mels, len(centres_hz), dtype=torch.float64)
    weight[upper - 1, columns] += 1 - share
    weight[upper, columns] += share
    return weight


def _energy_offset(source: MelConfig, rate_hz: int, window: int) -> float:
    """`2 ln df` of the source, and the log ratio of both analyses' power for one spectral density.

    For a density P (power per hertz) an STFT at rate fs with window w has |X|^2 = P fs sum w^2, and a Hann window's
    sum of squares is 3/8 of its length. The source filters average magnitudes, whose mean for noise is sqrt(pi/4) of
    the root of the mean power.
    """
    spacing = source.sample_rate_hz / source.n_fft
    analyses = rate_hz * window / (source.sample_rate_hz * source.win_length)
    return 2 * math.log(spacing) + math.log(analyses) + math.log(4 / math.pi)
