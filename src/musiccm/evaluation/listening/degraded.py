"""Copies that any listener tells from the original: anchors, and the checks that somebody listens at all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError

#: The low anchor of ITU-R BS.1534-3.
LOWPASS_HZ = 3500.0
#: White noise as strong as the music itself.
NOISE_DB = 0.0
FORMS = ("plain", "lowpass", "noise")


def degraded(waveform_S: Tensor, sample_rate_hz: int, form: str, seed: int) -> Tensor:
    """A copy of a clip in one of the forms.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Their rate.
        form: `plain` leaves them; `lowpass` takes away what is above 3.5 kHz; `noise` adds white noise of their power.
        seed: Of the noise.

    Returns:
        As many samples.

    Raises:
        MusiccmError: The form is unknown, or the rate leaves nothing for the filter to take away.
    """
    if form == "plain":
        return waveform_S
    if form == "noise":
        noise_S = torch.randn(len(waveform_S), generator=torch.Generator().manual_seed(seed))
        return waveform_S + noise_S * waveform_S.square().mean().sqrt() * 10 ** (NOISE_DB / 20)
    if form != "lowpass":
        raise MusiccmError(f"form: expected one of {', '.join(FORMS)}, found {form!r}")
    if sample_rate_hz <= 2.5 * LOWPASS_HZ:
        raise MusiccmError(f"a low-pass copy at {LOWPASS_HZ:g} Hz is no worse than sound of {sample_rate_hz} Hz; take "
                           "noise as the anchor")
    from scipy.signal import butter, sosfiltfilt

    filtered = sosfiltfilt(butter(8, LOWPASS_HZ, fs=sample_rate_hz, output="sos"), waveform_S.double().numpy())
    return torch.from_numpy(np.ascontiguousarray(filtered, dtype=np.float32))
