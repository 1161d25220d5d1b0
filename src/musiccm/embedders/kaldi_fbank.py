"""Kaldi's fbank of a batch of waveforms; torchaudio's is of one, and makes its filters anew each time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

RATE_HZ = 16000
FRAME, HOP, N_FFT = 400, 160, 512
LOWEST_HZ, PRE_EMPHASIS = 20.0, 0.97


class KaldiFbank(nn.Module):
    """The fbank that AudioMAE was trained on: mean removed, 25 ms Hann windows every 10 ms, log power, no dither.

    `torchaudio.compliance.kaldi.fbank` with `htk_compat`, without energy, otherwise by its defaults.

    Args:
        bins: Filters from 20 Hz to 8 kHz.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        filters_PF, _ = get_mel_banks(bins, N_FFT, float(RATE_HZ), LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("window", torch.hann_window(FRAME, periodic=False), persistent=False)
        # Kaldi leaves out the Nyquist bin
        self.register_buffer("filters", F.pad(filters_PF, (0, 1)).T.contiguous(), persistent=False)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Waveforms at 16 kHz of at least a frame to [B, frames, bins]; a rest of less than a frame is left out."""
        centred = waveform_BS - waveform_BS.mean(dim=1, keepdim=True)
        frames = centred.unfold(-1, FRAME, HOP)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * before) * self.window, N_FFT)
        power = spectrum.abs().square()
        return (power @ self.filters).clamp(min=torch.finfo(torch.float32).eps).log()
