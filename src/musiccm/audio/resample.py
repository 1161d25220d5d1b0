"""Changing the sampling rate."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor


def resample(waveform_S: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Resample with a windowed sinc (torchaudio's default filter).

    Args:
        waveform_S: Samples of shape [..., S].
        from_hz: Rate of the input.
        to_hz: Rate of the output.

    Returns:
        Samples of shape [..., ceil(S * to_hz / from_hz)]; the input itself where the rates agree.
    """
    if from_hz == to_hz:
        return waveform_S
    with torch.autocast(waveform_S.device.type, enabled=False):  # it is a convolution, which would be cast
        return torchaudio.functional.resample(waveform_S, from_hz, to_hz)
