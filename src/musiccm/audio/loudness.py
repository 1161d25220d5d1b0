"""How loud sound is, and how high it peaks between its samples (ITU-R BS.1770-5)."""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Below this a clip is near silence: 40 dB under what is usual for music.
NEAR_SILENCE_LUFS = -60.0
#: A frame is a fourth of BS.1770's gating block, which starts a new one so often.
FRAME_S, FRAMES_A_BLOCK = 0.1, 4
#: How much a block may lie below the mean of all before it counts as a pause.
RELATIVE_GATE_LU = 10.0
#: Loudness of a mean square of 1 behind the weighting: a sine of 997 Hz at full scale is then -3.01 LUFS.
_OFFSET_LU = -0.691
#: True peaks are looked for at so many times the rate; at four times, BS.1770's least, they may be missed by 0.6 dB.
_OVERSAMPLING, _HALF_TAPS = 8, 16
# Samples of a long sound that are oversampled together, for their memory.
_BLOCK_SAMPLES = 1 << 18

PEAK_CONTEXT = _HALF_TAPS
"""Samples on either side that the true peak at a sample depends on."""


def decibels(ratio: float) -> float:
    """Of an amplitude ratio; -inf for 0."""
    return 20.0 * math.log10(ratio) if ratio > 0 else -math.inf


def frame_samples(sample_rate_hz: int) -> int:
    """Samples of a frame of `FRAME_S`."""
    return round(FRAME_S * sample_rate_hz)


def loudness_lufs(waveform_S: Tensor, sample_rate_hz: int) -> float:
    """Integrated, gated loudness of mono sound, as one channel: a sine of 997 Hz at full scale has -3.01 LUFS.

    Sound shorter than a gating block of 0.4 s is one block.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Their rate.

    Returns:
        LUFS; -inf where no block is above -70 LUFS.
    """
    if not len(waveform_S):
        return -math.inf
    from scipy.signal import sosfilt

    powers_S = np.square(sosfilt(_weighting(sample_rate_hz), waveform_S.detach().cpu().double().numpy()))
    seconds, block_s = len(powers_S) / sample_rate_hz, FRAMES_A_BLOCK * FRAME_S
    if seconds < block_s:
        return gated_lufs(powers_S.mean(keepdims=True))
    frames = round((seconds - block_s) / FRAME_S) + FRAMES_A_BLOCK
    sums = np.add.reduceat(powers_S[: int(frames * FRAME_S * sample_rate_hz)],
                           [int(frame * FRAME_S * sample_rate_hz) for frame in range(frames)])
    return gated_lufs(np.convolve(sums, np.ones(FRAMES_A_BLOCK), "valid") / (block_s * sample_rate_hz))


@lru_cache
def _weighting(sample_rate_hz: int) -> np.ndarray:
    """K weighting as second-order sections."""
    return np.stack([np.concatenate([stage.b, stage.a]) for stage in _meter(sample_rate_hz)._filters.values()])


def _meter(sample_rate_hz: int) -> Any:
    from pyloudnorm import Meter

    # "DeMan" is the standard's filter at any rate; the library's own default is off by some hundredths of a dB
    meter = Meter(sample_rate_hz, "DeMan", FRAMES_A_BLOCK * FRAME_S)
    # below 3.4 kHz there is no sound where the shelf would be, and no such filter
    meter._filters = {name: stage for name, stage in meter._filters.items() if stage.fc < sample_rate_hz / 2}
    return meter


def gated_lufs(powers: np.ndarray, absolute_lufs: float = -70.0) -> float:
    """Loudness of gating blocks: their mean without those below the absolute gate, then without pauses.

    Args:
        powers: Weighted mean square of each block.
        absolute_lufs: Blocks below this count as nothing.

    Returns:
        LUFS; -inf where no block counts.
    """
    kept = powers[powers >= _power(absolute_lufs)]
    if not len(kept):
        return -math.inf
    kept = kept[kept > kept.mean() * 10 ** (-RELATIVE_GATE_LU / 10)]
    return _OFFSET_LU + 10.0 * math.log10(kept.mean())


def _power(lufs: float) -> float:
    return 10 ** ((lufs - _OFFSET_LU) / 10)


class RunningLoudness:
    """Loudness of the last part of sound that comes frame by frame, in constant memory.

    Args:
        sample_rate_hz: Rate of the sound.
        window_s: How much of the past counts.

    Attributes:
        loudest_lufs: Loudness of the loudest gating block so far.
    """

    def __init__(self, sample_rate_hz: int, window_s: float = 60.0) -> None:
        meter = _meter(sample_rate_hz)
        self.loudest_lufs = -math.inf
        self._filters = [(stage.b, stage.a) for stage in meter._filters.values()]
        self._states = [np.zeros(2) for _ in self._filters]
        self._frames: deque[float] = deque(maxlen=FRAMES_A_BLOCK)
        self._blocks: deque[float] = deque(maxlen=round(window_s / FRAME_S))

    def push(self, frame_S: np.ndarray) -> None:
        """Take the next frame; all frames must be of one size, or sums would be rounded otherwise.

        Args:
            frame_S: Samples of a frame.
        """
        from scipy.signal import lfilter

        weighted_S = frame_S
        for number, (b, a) in enumerate(self._filters):
            weighted_S, self._states[number] = lfilter(b, a, weighted_S, zi=self._states[number])
        self._frames.append(float(np.mean(np.square(weighted_S))))
        if len(self._frames) == FRAMES_A_BLOCK:
            self._count()

    def settle(self) -> None:
        """Let sound that ended before a whole gating block be one."""
        if not self._blocks and self._frames:
            self._count()

    def lufs(self, absolute_lufs: float = -70.0) -> float:
        """Gated loudness of what counts of the past; -inf where no block does.

        Args:
            absolute_lufs: Blocks below this count as nothing.
        """
        return gated_lufs(np.array(self._blocks), absolute_lufs)

    def _count(self) -> None:
        power = sum(self._frames) / len(self._frames)
        self._blocks.append(power)
        if power > 0:
            self.loudest_lufs = max(self.loudest_lufs, _OFFSET_LU + 10.0 * math.log10(power))


@lru_cache(maxsize=1)
def _interpolator() -> Tensor:
    """Low pass that puts samples between samples; flat up to nine tenths of the band.

    Returns:
        Of shape [phases, 1, taps]: what gives the sound at so many eighths of a sample behind the middle of the taps.
    """
    from scipy.signal import firwin

    taps = firwin(2 * _HALF_TAPS * _OVERSAMPLING + 1, 1 / _OVERSAMPLING, window=("kaiser", 5.0)) * _OVERSAMPLING
    phases = np.zeros((2 * _HALF_TAPS + 1) * _OVERSAMPLING)
    phases[: len(taps)] = taps
    return torch.from_numpy(phases.reshape(-1, _OVERSAMPLING)[::-1].T.astype(np.float32).copy())[:, None]


def peaks_around(samples_S: np.ndarray) -> np.ndarray:
    """Largest magnitude that the sound has at each sample and half a sample around it (BS.1770-5, annex 2).

    Args:
        samples_S: Samples, with `PEAK_CONTEXT` more on either side.

    Returns:
        A peak for each sample but those of the context, float32.
    """
    # a sample more before them, as half of what is around the first one lies behind its own eighths
    wider_S = torch.from_numpy(np.pad(samples_S.astype(np.float32), (1, 0)))
    # in a twentieth of the time of polyphase filters one by one
    dense_PS = torch.conv1d(wider_S[None, None], _interpolator())[0].abs_()
    half = _OVERSAMPLING // 2
    behind_S, before_S = dense_PS[: half + 1, 1:].amax(dim=0), dense_PS[half:, :-1].amax(dim=0)
    return torch.maximum(before_S, behind_S).numpy()


def all_peaks(samples_S: np.ndarray) -> np.ndarray:
    """`peaks_around` of a whole sound, before and behind which nothing is.

    Args:
        samples_S: Samples.

    Returns:
        A peak for each, float32.
    """
    padded_S = np.pad(samples_S.astype(np.float32), PEAK_CONTEXT)
    parts = [peaks_around(padded_S[first : first + _BLOCK_SAMPLES + 2 * PEAK_CONTEXT])
             for first in range(0, len(samples_S), _BLOCK_SAMPLES)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def true_peak(waveform_S: Tensor) -> float:
    """Largest magnitude at and between the samples, by oversampling eight times.

    Args:
        waveform_S: Samples, mono.

    Returns:
        The magnitude; 1 is full scale.
    """
    return float(all_peaks(waveform_S.detach().cpu().numpy()).max(initial=0.0))


def near_silence(waveform_S: Tensor, lufs: float) -> str | None:
    """What was measured of sound that is near silence.

    Args:
        waveform_S: Samples, mono.
        lufs: Their loudness.

    Returns:
        A few words; None for sound that is loud enough, and for what is no sound (NaN).
    """
    if not lufs < NEAR_SILENCE_LUFS or not bool(torch.isfinite(waveform_S).all()):
        return None
    peak_db = decibels(float(waveform_S.abs().max())) if len(waveform_S) else -math.inf
    return f"{lufs_text(lufs)}, peak {peak_db:.1f} dBFS"


def lufs_text(lufs: float) -> str:
    """A loudness in words, where it may be below what is measured."""
    return "below -70 LUFS" if lufs < -70.0 else f"{lufs:.1f} LUFS"
