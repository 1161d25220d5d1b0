"""The log-mel front end of MusicLDM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
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


# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, 27 steps to a factor of 6.4 above it.
_HZ_PER_MEL, _BREAK_HZ = 200.0 / 3, 1000.0
_BREAK_MEL, _LOG_STEP = _BREAK_HZ / _HZ_PER_MEL, math.log(6.4) / 27.0


def slaney_filters(config: MelConfig) -> Tensor:
    """Triangular filters on Slaney's mel scale, each of area 1 in hertz.

    torchaudio's `melscale_fbanks` to the bit, with `norm` and `mel_scale` "slaney"; that package is tied to one
    version of torch, and whoever only makes music needs nothing else of it.

    Args:
        config: Numbers of the front end.

    Returns:
        filters_FN: Weights of shape [n_fft // 2 + 1, n_mels].
    """
    corners = _corners_hz(config)
    frequencies = torch.linspace(0, config.sample_rate_hz // 2, config.n_fft // 2 + 1)
    widths = corners.diff()
    distances = corners - frequencies[:, None]
    filters_FN = torch.minimum(-distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]).clamp(min=0)
    return filters_FN * (2.0 / (corners[2:] - corners[:-2]))


def _corners_hz(config: MelConfig) -> Tensor:
    """Where the triangles begin, peak and end: those of bin n at n, n + 1 and n + 2."""
    ends = [hz / _HZ_PER_MEL if hz < _BREAK_HZ else _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP
            for hz in (config.fmin_hz, config.fmax_hz)]
    mels = torch.linspace(*ends, config.n_mels + 2)
    return torch.where(mels >= _BREAK_MEL, _BREAK_HZ * torch.exp(_LOG_STEP * (mels - _BREAK_MEL)), _HZ_PER_MEL * mels)


def bin_centres_hz(config: MelConfig) -> list[float]:
    """The frequency at which each mel bin is most sensitive, lowest first."""
    return _corners_hz(config)[1:-1].tolist()


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
        self.register_buffer("filters", slaney_filters(c), persistent=False)

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
            # Twice as fast as a sum over an axis of two, and several times as the complex abs(). The constant keeps the
            # root differentiable at silence.
            power = spectrum.real.square() + spectrum.imag.square()
            magnitude = (power + 1e-16).sqrt()
            mel = (magnitude.transpose(-1, -2) @ self.filters).clamp(min=MEL_FLOOR).log()
            mel = mel[:, : waveform_BS.shape[-1] // c.hop_length]
        return mel.reshape(*waveform_BS.shape[:-1], *mel.shape[-2:])
