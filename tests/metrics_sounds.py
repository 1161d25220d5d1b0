"""Sounds for networks to hear."""

import math

import torch


def tones(seconds: float, rate_hz: int = 16000, clips: int = 2) -> torch.Tensor:
    """Chords over a little noise, a different one each clip, with a beat in their loudness."""
    t = torch.arange(int(seconds * rate_hz)) / rate_hz
    noise = torch.randn(clips, len(t), generator=torch.Generator().manual_seed(0))
    chords = torch.stack([sum((2 * math.pi * f * (1 + 0.26 * clip) * t).sin() for f in (220.0, 277.2, 329.6, 1760.0))
                          for clip in range(clips)])
    return 0.1 * chords * (1.2 + (2 * math.pi * 3 * t).sin()) + 0.02 * noise
