"""Clips of two systems and of real music, a second or so each, for tests of listening tests."""

from __future__ import annotations

import numpy as np

#: System, rate, level. Names that would be seen at once where they stand in a page.
SYSTEMS = (("teacherfifty", 16_000, 0.9), ("studentfour", 22_050, 0.2), ("realmusic", 16_000, 0.5))
CLIPS = 6


def clip(number: int, rate_hz: int, seconds: float, level: float) -> np.ndarray:
    """Decaying chords, other ones for every number."""
    generator = np.random.default_rng(number)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = sum(np.sin(2 * np.pi * f * t) for f in generator.uniform(150, 6000, 6)) * np.exp(-((3 * t) % 1))
    return (level * tones / np.abs(tones).max()).astype(np.float32)
