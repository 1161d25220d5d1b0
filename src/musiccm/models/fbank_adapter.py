"""From the teacher's mel to the filter bank that a feature network was trained on, differentiably."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from musiccm.audio.mel import MelConfig

# torchaudio's float32 epsilon, below which its fbank does not go.
KALDI_EPSILON = 1.1920928955078125e-07


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
        """Map a mel of N bins to the target's P bins, frame by frame, in float32 under autocast too."""
        with torch.autocast(mel_BMN.device.type, enabled=False):
            return mel_BMN.to(self.weight_NP.dtype) @ self.weight_NP * self.slope + self.offset_P

    @classmethod
    def identity(cls, n_mels: int) -> FbankAdapter:
        """For a network trained on this very mel."""
        return cls(torch.eye(n_mels), torch.zeros(n_mels), 1.0)

    @classmethod
    def to_kaldi(cls, source: MelConfig, bins: int = 128) -> FbankAdapter:
        """To the fbank of AudioMAE: Kaldi at 16 kHz, 25 ms Hann window, log power, HTK mel from 20 Hz to Nyquist.

        Kaldi's defaults otherwise: pre-emphasis 0.97, FFT of 512 points, filters without area normalisation. With 128
        bins its lowest filters are narrower than the FFT's spacing; those that catch no FFT bin hold Kaldi's floor.

        Args:
            source: The mel's front end.
            bins: Filters of the target.
        """
        from torchaudio.compliance.kaldi import get_mel_banks

        rate, frame, n_fft = 16000, 400, 512
        filters_PF, _ = get_mel_banks(bins, n_fft, float(rate), 20.0, 0.0, 100.0, -500.0, 1.0)
        # Kaldi leaves out the Nyquist bin.
        filters_FP = nn.functional.pad(filters_PF, (0, 1)).T
        return cls.to_filters(source, filters_FP, rate, frame, floor=math.log(KALDI_EPSILON), pre_emphasis=0.97)

    @classmethod
    def to_filters(
        cls,
        source: MelConfig,
        filters_FP: Tensor,
        rate_hz: int,
        window: int,
        floor: float,
        scale: float = 1.0,
        pre_emphasis: float = 0.0,
    ) -> FbankAdapter:
        """To the log of any bank of filters over a power spectrum.

        Args:
            source: The mel's front end.
            filters_FP: The target's filters, FFT bins from 0 Hz to its Nyquist frequency by filters.
            rate_hz: The target's sampling rate.
            window: Samples of its Hann window.
            floor: Value of filters that catch nothing, or lie above the source's Nyquist frequency, where resampled
                sound has nothing.
            scale: 1 for the natural logarithm, 10 / ln 10 for decibels.
            pre_emphasis: Coefficient a of `x[n] - a x[n - 1]`.
        """
        filters_FP = filters_FP.double()
        frequencies_F = torch.linspace(0.0, rate_hz / 2, len(filters_FP), dtype=torch.float64)
        omega_F = 2 * math.pi * frequencies_F / rate_hz
        emphasis_F = 1 + pre_emphasis**2 - 2 * pre_emphasis * omega_F.cos()
        sums_P = filters_FP.sum(0)
        audible_P = sums_P > 0
        centres_P = (frequencies_F @ filters_FP) / sums_P.clamp(min=1e-12)
        audible_P &= centres_P <= source.sample_rate_hz / 2
        gain_P = (emphasis_F @ filters_FP).clamp(min=1e-12).log()
        weight_NP = _interpolation(source, centres_P)
        weight_NP[:, ~audible_P] = 0.0
        offset_P = torch.where(audible_P, scale * (gain_P + _energy_offset(source, rate_hz, window)), floor)
        return cls(weight_NP, offset_P, 2.0 * scale)


def _interpolation(source: MelConfig, centres_hz: Tensor) -> Tensor:
    """Linear interpolation from the source's filter centres to other frequencies, [N, P]; the ends are held."""
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    low, high = hertz_to_mel(source.fmin_hz, "slaney"), hertz_to_mel(source.fmax_hz, "slaney")
    own = torch.as_tensor(mel_to_hertz(np.linspace(low, high, source.n_mels + 2)[1:-1], "slaney"))
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
