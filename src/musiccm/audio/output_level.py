"""The level at which sound leaves, and its ends: one gain for a whole clip, and fades where a wave is cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from musiccm.audio.limiter import whole_gain
from musiccm.audio.loudness import NEAR_SILENCE_LUFS, all_peaks, decibels, loudness_lufs
from musiccm.bounds import LEVELS, one_of

#: ReplayGain 2.0's reference, which leaves most music its peaks.
TARGET_LUFS = -18.0
#: Largest true peak; coders such as mp3 add some tenths of a dB, and streaming services ask for -1.
CEILING_DBTP = -1.0
# What the limiter aims at: its gain moves, and peaks between samples with it.
SAFE_CEILING = 10 ** ((CEILING_DBTP - 0.05) / 20)
#: How far peaks are pressed down to reach the target at most; what has higher peaks stays below it.
MOST_LIMITING_DB = 6.0
FADE_S = 0.01
#: An end whose outermost millisecond is 60 dB below full scale, or below a whole clip's peak, cuts no wave.
QUIET_END, END_S = 1e-3, 0.001
# A limiter takes some of the loudness away, which a second and third pass give back.
_PASSES, _CLOSE_LU = 3, 0.05


def check_level(level: str) -> str:
    """Refuse an unknown level.

    Args:
        level: `none`, `peak` or `loudness`.

    Returns:
        It.

    Raises:
        MusiccmError: It is none of these.
    """
    return one_of("level", level, LEVELS)


def levelled(waveform_S: Tensor, sample_rate_hz: int, level: str, lufs: float | None = None) -> Tensor:
    """Bring a whole clip to a level, and fade the ends that cut a wave.

    `peak` multiplies it by one number, so that its true peak is -1 dBTP. `loudness` does so that it has -18 LUFS; peaks
    beyond -1 dBTP are limited, by up to 6 dB, and a clip of still higher peaks stays quieter. What is near silence is
    not raised.

    Args:
        waveform_S: Samples, mono, on the CPU.
        sample_rate_hz: Their rate.
        level: One of `LEVELS`; `none` gives the samples as they are.
        lufs: Their loudness, where it is known.

    Returns:
        As many samples, float32.

    Raises:
        MusiccmError: The level is unknown.
    """
    if check_level(level) == "none" or not bool(torch.isfinite(waveform_S).all()):  # NaN is for the writer to refuse
        return waveform_S
    lufs = loudness_lufs(waveform_S, sample_rate_hz) if lufs is None else lufs
    if lufs < NEAR_SILENCE_LUFS:
        return waveform_S
    # first, as a peak that is faded away is none
    waveform_S = faded(waveform_S, sample_rate_hz, QUIET_END * float(waveform_S.abs().max()))
    samples_S = waveform_S.double().numpy()
    peaks_S = all_peaks(samples_S)
    peak_db = decibels(float(peaks_S.max()))
    if level == "peak":
        return _amplified(samples_S, CEILING_DBTP - peak_db)
    most_db = CEILING_DBTP + MOST_LIMITING_DB - peak_db
    gain_db, made_S = 0.0, waveform_S
    for number in range(_PASSES):
        before_db, gain_db = gain_db, min(gain_db + TARGET_LUFS - lufs, most_db)
        if number and abs(gain_db - before_db) < _CLOSE_LU:
            break
        pressed_S = whole_gain(peaks_S * 10 ** (gain_db / 20), sample_rate_hz, SAFE_CEILING)
        made_S = _amplified(samples_S * pressed_S, gain_db)
        if gain_db <= CEILING_DBTP - peak_db or gain_db == most_db:
            break
        lufs = loudness_lufs(made_S, sample_rate_hz)
    return made_S


def _amplified(samples_S: np.ndarray, gain_db: float) -> Tensor:
    return torch.from_numpy((samples_S * 10 ** (gain_db / 20)).astype(np.float32))


def faded(
    waveform_S: Tensor, sample_rate_hz: int, quiet: float = QUIET_END, begins: bool = True, ends: bool = True
) -> Tensor:
    """Fade the ends that cut a wave, within 10 ms, by half a period of a cosine; others stay as they are.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Their rate.
        quiet: An end whose outermost millisecond is no higher than this cuts no wave.
        begins: Whether the sound begins with the first sample.
        ends: Whether it ends with the last one.

    Returns:
        As many samples.
    """
    length = min(round(FADE_S * sample_rate_hz), len(waveform_S) // (2 if begins and ends else 1))
    outermost = max(1, round(END_S * sample_rate_hz))
    if not length:
        return waveform_S
    begins = begins and float(waveform_S[:outermost].abs().max()) > quiet
    ends = ends and float(waveform_S[-outermost:].abs().max()) > quiet
    if not (begins or ends):
        return waveform_S
    rise_S = (0.5 - 0.5 * torch.cos(math.pi * (torch.arange(length).double() + 0.5) / length)).to(waveform_S.dtype)
    shaped_S = waveform_S.clone()
    if begins:
        shaped_S[:length] *= rise_S
    if ends:
        shaped_S[-length:] *= rise_S.flip(0)
    return shaped_S

