"""Changing the sampling rate."""

from __future__ import annotations

import math

import soxr
import torch
from torch import Tensor

from musiccm.audio.io import MAX_RATE_HZ, MIN_RATE_HZ
from musiccm.errors import MusiccmError

RESAMPLERS = ("torchaudio", "soxr")

# torchaudio holds a filter for every phase, some from * to / gcd^2 numbers, and computes as many products a period: 70
# thousand from 44,100 Hz to 16,000, but 700 million (2.8 GB) from 44,099. Music is sold at rates below this.
_MOST_FILTER_NUMBERS = 2**20


def resample(waveform_S: Tensor, from_hz: int, to_hz: int, resampler: str = "torchaudio") -> Tensor:
    """Resample with a windowed sinc.

    Args:
        waveform_S: Samples of shape [..., S].
        from_hz: Rate of the input.
        to_hz: Rate of the output.
        resampler: `torchaudio` (its default filter: short, differentiable, on any device; MusicLDM's) or `soxr` (its HQ
            recipe: a longer filter, on the CPU, without gradients). Between rates such as 44,099 and 16,000 Hz, whose
            common divisor is so small that torchaudio's filters would fill the memory, it is soxr in any case.

    Returns:
        Samples of shape [..., ceil(S * to_hz / from_hz)]; the input itself where the rates agree.

    Raises:
        MusiccmError: There is no such resampler, a rate is none that sound has, or gradients are to flow through soxr.
    """
    if resampler not in RESAMPLERS:
        raise MusiccmError(f"the resampler must be one of {', '.join(RESAMPLERS)}, found {resampler!r}")
    for rate_hz in (from_hz, to_hz):
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:  # the output of a false ratio would fill the memory
            raise MusiccmError(f"resampling from {from_hz:,} Hz to {to_hz:,} Hz: expected sampling rates of "
                               f"{MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} Hz; check where the rate comes from")
    if from_hz == to_hz:
        return waveform_S
    if resampler == "torchaudio" and from_hz * to_hz // math.gcd(from_hz, to_hz) ** 2 <= _MOST_FILTER_NUMBERS:
        import torchaudio  # which only training and measuring install

        with torch.autocast(waveform_S.device.type, enabled=False):  # it is a convolution, which would be cast
            return torchaudio.functional.resample(waveform_S, from_hz, to_hz)
    if waveform_S.requires_grad:
        raise MusiccmError(f"resampling from {from_hz} Hz to {to_hz} Hz by soxr has no gradient; choose rates with a "
                           "larger common divisor and torchaudio, or detach the sound")
    rows = waveform_S.reshape(-1, waveform_S.shape[-1])
    # soxr leaves out the last sample where the length is no whole number of periods.
    length = -(-waveform_S.shape[-1] * to_hz // from_hz)
    resampled = [torch.from_numpy(soxr.resample(row.numpy(), from_hz, to_hz)) for row in rows.cpu()]
    padded = [torch.nn.functional.pad(row, (0, length - len(row))) for row in resampled]
    return torch.stack(padded).reshape(*waveform_S.shape[:-1], length).to(waveform_S.device)
