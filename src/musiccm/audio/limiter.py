"""Peaks held below a ceiling by a gain that dips ahead of them."""

from __future__ import annotations

import numpy as np

#: How long before and behind a peak the gain is down, in seconds; half of it is the way there.
HOLD_S = 0.04


def limiter_context(sample_rate_hz: int) -> int:
    """Samples on either side whose peaks the gain at a sample depends on."""
    return 2 * _hold(sample_rate_hz)


def _hold(sample_rate_hz: int) -> int:
    return 2 * round(HOLD_S * sample_rate_hz / 2)  # even, so that half of it on either side is an odd window


def limiting_gain(peaks_S: np.ndarray, sample_rate_hz: int, ceiling: float) -> np.ndarray:
    """Gain that keeps peaks below a ceiling; 1 where there is nothing to do.

    The least gain that is needed within `HOLD_S` on either side, averaged twice over half of that: nowhere is it more
    than the peak there allows, and it depends on nothing further away than twice `HOLD_S`.

    Args:
        peaks_S: Largest magnitude around each sample (`peaks_around`), with `limiter_context` more on either side.
        sample_rate_hz: Rate of the sound.
        ceiling: Largest magnitude that is let through.

    Returns:
        A gain for each sample but those of the context.
    """
    from scipy.ndimage import minimum_filter1d, uniform_filter1d

    hold = _hold(sample_rate_hz)
    inner = len(peaks_S) - 2 * limiter_context(sample_rate_hz)
    if not peaks_S.max(initial=0.0) > ceiling:
        return np.ones(inner)
    gain_S = minimum_filter1d(ceiling / np.maximum(peaks_S, ceiling).astype(np.float64), 2 * hold + 1)
    for _ in range(2):
        gain_S = uniform_filter1d(gain_S, hold + 1)
    return gain_S[2 * hold : 2 * hold + inner]


def whole_gain(peaks_S: np.ndarray, sample_rate_hz: int, ceiling: float) -> np.ndarray:
    """`limiting_gain` of a whole sound.

    Args:
        peaks_S: Largest magnitude around each sample, without context.
        sample_rate_hz: Rate of the sound.
        ceiling: Largest magnitude that is let through.

    Returns:
        A gain for each sample.
    """
    return limiting_gain(np.pad(peaks_S, limiter_context(sample_rate_hz)), sample_rate_hz, ceiling)
