"""Drum one-shots and the patterns that play them."""

from __future__ import annotations

from functools import cache

import numpy as np

from musiccm.data.demo.instruments import SAMPLE_RATE_HZ

#: (instrument, beats of a bar, velocity) by style and beats in a bar.
PATTERNS = {
    ("soft", 4): (("shaker", (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5), 0.5), ("rim", (1, 3), 0.6)),
    ("soft", 3): (("shaker", (0, 0.5, 1, 1.5, 2, 2.5), 0.5), ("rim", (1, 2), 0.6)),
    ("rock", 4): (
        ("kick", (0, 2, 2.5), 1.0), ("snare", (1, 3), 0.9), ("hat", (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5), 0.45),
    ),
    ("dance", 4): (("kick", (0, 1, 2, 3), 1.0), ("clap", (1, 3), 0.7), ("open_hat", (0.5, 1.5, 2.5, 3.5), 0.5)),
}  # fmt: skip


@cache
def one_shot(name: str) -> np.ndarray:
    """A drum hit, float32 at 16 kHz."""
    rng = np.random.default_rng([17, *name.encode()])
    t = np.arange(int(0.4 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    noise = rng.standard_normal(len(t)).astype(np.float32)
    bright = np.diff(noise, prepend=noise[:1]).astype(np.float32)
    if name == "kick":
        phase = np.cumsum(48 + 130 * np.exp(-t * 34)) / SAMPLE_RATE_HZ
        return (0.75 * np.sin(2 * np.pi * phase) * np.exp(-t * 11)).astype(np.float32)
    if name == "snare":
        return 0.3 * noise * np.exp(-t * 19) + 0.28 * np.sin(2 * np.pi * 190 * t) * np.exp(-t * 26)
    if name == "clap":
        bursts = sum(np.where(t > d, np.exp(-np.maximum(t - d, 0) * 60), 0) for d in (0.0, 0.011, 0.022))
        return (0.2 * noise * (bursts + 0.5 * np.exp(-t * 17))).astype(np.float32)
    if name == "rim":
        click = 0.35 * np.sin(2 * np.pi * 1700 * t) * np.exp(-t * 90)
        return (click + 0.1 * bright * np.exp(-t * 120)).astype(np.float32)
    decay = {"hat": 55.0, "open_hat": 14.0, "shaker": 38.0}[name]
    attack = np.minimum(t / 0.018, 1) if name == "shaker" else np.float32(1)
    return (0.16 * bright * attack * np.exp(-t * decay)).astype(np.float32)
