"""Two sounds mixed that sound equally loud (between-class learning, arXiv 1711.10282)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: What a frame counts at least, in dB: silence has no logarithm.
FLOOR_DB = -80.0
# Shortest frame of the loudness; its samples are rounded up to a power of two, 2048 at 16 kHz.
_FRAME_S = 0.09


def a_weighting_db(frequency_hz: Tensor) -> Tensor:
    """How loud the ear finds a frequency, IEC 61672's curve A: 0 dB at 1 kHz, no less than -80 dB.

    Args:
        frequency_hz: Frequencies.

    Returns:
        Decibels, float64, of the same shape.
    """
    square = frequency_hz.double() ** 2
    poles = (square + 20.6**2) * ((square + 107.7**2) * (square + 737.9**2)).sqrt() * (square + 12194.0**2)
    return (2.0 + 20.0 * (12194.0**2 * square**2 / poles).log10()).clamp(min=FLOOR_DB)


def loudness_db(waveform_S: Tensor, sample_rate_hz: int) -> float:
    """A-weighted power of the loudest frame; frames overlap by half, and a shorter sound is one frame.

    Args:
        waveform_S: Samples, mono.
        sample_rate_hz: Their rate.

    Returns:
        Decibels, no less than -80.
    """
    size = 2 ** math.ceil(math.log2(_FRAME_S * sample_rate_hz))
    padded_S = torch.nn.functional.pad(waveform_S.double(), (0, max(0, size - len(waveform_S))))
    frames_KS = padded_S.unfold(0, size, size // 2) * torch.hann_window(size, dtype=torch.float64)
    weights = 10 ** (a_weighting_db(torch.fft.rfftfreq(size, 1 / sample_rate_hz)) / 10)
    power_K = (torch.fft.rfft(frames_KS).abs() ** 2 * weights).sum(dim=1)
    return 10 * math.log10(max(float(power_K.max()), 10 ** (FLOOR_DB / 10)))


def mix(first_S: Tensor, second_S: Tensor, sample_rate_hz: int, share: float = 0.5) -> Tensor:
    """Mix two sounds in a ratio of loudness, at the power that two unrelated sounds of equal power keep.

    Args:
        first_S: One, mono.
        second_S: The other, as long.
        sample_rate_hz: Their rate.
        share: Of the first; 0.5 makes both equally loud.

    Returns:
        The mixture, float32.
    """
    difference_db = loudness_db(first_S, sample_rate_hz) - loudness_db(second_S, sample_rate_hz)
    t = 1.0 / (1.0 + 10 ** (difference_db / 20) * (1 - share) / share)
    mixed_S = (first_S.double() * t + second_S.double() * (1 - t)) / math.sqrt(t**2 + (1 - t) ** 2)
    return mixed_S.to(torch.float32)
