"""The log-mel front end of MusicLDM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor, nn

from musiccm.errors import MusiccmError

# Magnitudes below this are clamped before the logarithm: the mel of silence is ln(1e-5) = -11.51.
MEL_FLOOR = 1e-5


@dataclass(frozen=True)
class MelConfig:
    """Numbers of the front end; the defaults are the released MusicLDM's.

    Args:
        sample_rate_hz: Sampling rate of the waveform.
        n_fft: Points of the Fourier transform.
        win_length: Samples of the periodic Hann window.
        hop_length: Samples between frames.
        n_mels: Mel bins.
        fmin_hz: Lowest frequency of the filter bank.
        fmax_hz: Highest frequency of the filter bank.
    """

    sample_rate_hz: int = 16000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 160
    n_mels: int = 64
    fmin_hz: float = 0.0
    fmax_hz: float = 8000.0


class LogMel(nn.Module):
    """Natural logarithm of a mel magnitude spectrogram, differentiable.

    Reflect padding by n_fft / 2, magnitude STFT with a periodic Hann window, Slaney mel filters with Slaney area
    normalisation, `ln(max(., 1e-5))`, frames cut to S // hop. (The TacotronSTFT of MusicLDM, arXiv 2308.01546.)

    Args:
        config: Numbers of the front end.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelConfig()
        c = self.config
        self.register_buffer("window", torch.hann_window(c.win_length, periodic=True), persistent=False)
        filters_FN = torchaudio.functional.melscale_fbanks(
            c.n_fft // 2 + 1, c.fmin_hz, c.fmax_hz, c.n_mels, c.sample_rate_hz, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters_FN, persistent=False)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Compute the log-mel.

        Args:
            waveform_BS: Waveforms of shape [..., S]; more than n_fft / 2 samples, which reflect padding needs.

        Returns:
            mel_BMN: Log-mel of shape [..., S // hop, n_mels], in float32 or wider.

        Raises:
            MusiccmError: The waveform is too short.
        """
        c = self.config
        if waveform_BS.shape[-1] <= c.n_fft // 2:
            raise MusiccmError(
                f"the mel front end needs more than {c.n_fft // 2} samples, found {waveform_BS.shape[-1]}"
            )
        # bf16 has 8 bits of mantissa: the spectrum of a quiet passage would be rounding noise.
        with torch.autocast(waveform_BS.device.type, enabled=False):
            waveform_BS = waveform_BS.to(self.window.dtype)
            flat = waveform_BS.reshape(-1, waveform_BS.shape[-1])
            spectrum = torch.stft(
                flat, c.n_fft, c.hop_length, c.win_length, self.window, center=True, pad_mode="reflect",
                return_complex=True,
            )
            # Several times faster than the complex abs(); the constant keeps the root differentiable at silence.
            power = torch.view_as_real(spectrum).square().sum(-1)
            magnitude = (power + 1e-16).sqrt()
            mel = (magnitude.transpose(-1, -2) @ self.filters).clamp(min=MEL_FLOOR).log()
            mel = mel[:, : waveform_BS.shape[-1] // c.hop_length]
        return mel.reshape(*waveform_BS.shape[:-1], *mel.shape[-2:])
