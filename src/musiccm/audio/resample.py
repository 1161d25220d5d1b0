"""Changing the sampling rate."""

from __future__ import annotations

import soxr
import torch
import torchaudio
from torch import Tensor

from musiccm.errors import MusiccmError

RESAMPLERS = ("torchaudio", "soxr")


def resample(waveform_S: Tensor, from_hz: int, to_hz: int, resampler: str = "torchaudio") -> Tensor:
    """Resample with a windowed sinc.

    Args:
        waveform_S: Samples of shape [..., S].
        from_hz: Rate of the input.
        to_hz: Rate of the output.
        resampler: `torchaudio` (its default filter: short, differentiable, on any device; MusicLDM's) or `soxr` (its HQ
            recipe: a longer filter, on the CPU).

    Returns:
        Samples of shape [..., ceil(S * to_hz / from_hz)]; the input itself where the rates agree.

    Raises:
        MusiccmError: There is no such resampler.
    """
    if resampler not in RESAMPLERS:
        raise MusiccmError(f"the resampler must be one of {', '.join(RESAMPLERS)}, found {resampler!r}")
    if from_hz == to_hz:
        return waveform_S
    if resampler == "torchaudio":
        with torch.autocast(waveform_S.device.type, enabled=False):  # it is a convolution, which would be cast
            return torchaudio.functional.resample(waveform_S, from_hz, to_hz)
    rows = waveform_S.reshape(-1, waveform_S.shape[-1])
    # soxr leaves out the last sample where the length is no whole number of periods.
    length = -(-waveform_S.shape[-1] * to_hz // from_hz)
    resampled = [torch.from_numpy(soxr.resample(row.numpy(), from_hz, to_hz)) for row in rows]
    padded = [torch.nn.functional.pad(row, (0, length - len(row))) for row in resampled]
    return torch.stack(padded).reshape(*waveform_S.shape[:-1], length)
