"""Degradations of a log-mel that leave the music as it was: what a tagger must not be misled by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Degradation:
    """How far clips are degraded; each kind is drawn for each clip, between nothing and its bound.

    Args:
        gain: shift of the log-mel, uniform in +- this (0.3 is 2.6 dB), so that loudness is no cue.
        floor_low: noise floor (log-mel) of the least noise.
        floor_high: noise floor of the most.
        blur_bins: standard deviation of the blur over mel bins.
        blur_frames: standard deviation of the blur over frames.
        grain: standard deviation of noise on every log-mel value.
        share: share of the clips that each of floor, blur and grain applies to.
    """

    gain: float = 0.3
    floor_low: float = -8.0
    floor_high: float = -4.5
    blur_bins: float = 1.0
    blur_frames: float = 2.0
    grain: float = 0.4
    share: float = 0.5


def degrade(mel_BMN: Tensor, settings: Degradation, generator: torch.Generator) -> Tensor:
    """Degrade a batch: gain, noise floor, blur and grain.

    Args:
        mel_BMN: natural-log mels.
        settings: how far.
        generator: source of all draws, on the CPU.

    Returns:
        Mels of the same shape.
    """
    draws = torch.rand(6, len(mel_BMN), 1, 1, generator=generator).to(mel_BMN)
    on = (draws[:3] < settings.share).to(mel_BMN)
    floor = settings.floor_low + (settings.floor_high - settings.floor_low) * draws[3]
    noisy = torch.logaddexp(mel_BMN, floor.expand_as(mel_BMN))
    mel_BMN = torch.lerp(mel_BMN, noisy, on[0])
    spread = torch.rand(2, generator=generator)
    blurred = _blur(mel_BMN, settings.blur_frames * float(spread[0]), settings.blur_bins * float(spread[1]))
    mel_BMN = torch.lerp(mel_BMN, blurred.to(mel_BMN), on[1])  # autocast blurs in half precision
    grain = torch.randn(mel_BMN.shape, generator=generator).to(mel_BMN)
    mel_BMN = mel_BMN + on[2] * settings.grain * draws[4] * grain
    return mel_BMN + settings.gain * (2.0 * draws[5] - 1.0)


def _blur(mel_BMN: Tensor, sigma_frames: float, sigma_bins: float) -> Tensor:
    x = mel_BMN.unsqueeze(1)
    for sigma, axis in ((sigma_frames, 2), (sigma_bins, 3)):
        taps = _gaussian(sigma).to(x)
        shape = [1, 1, 1, 1]
        shape[axis] = len(taps)
        pad = [0, 0, 0, 0]
        pad[2 * (3 - axis)] = pad[2 * (3 - axis) + 1] = len(taps) // 2
        x = F.conv2d(F.pad(x, pad, mode="replicate"), taps.view(shape))
    return x.squeeze(1)


def _gaussian(sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2)
    return taps / taps.sum()
