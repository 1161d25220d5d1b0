"""A corpus in Audiostock's layout, small enough to write for every test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16000
INSTRUMENTS = ("piano", "flute", "organ")


def write_clip(root: Path, split: str, stem: str, samples: np.ndarray, suffix: str = ".flac", rate_hz: int = RATE_HZ,
               label: dict | str | None = None) -> None:
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "label").mkdir(exist_ok=True)
    options = {"subtype": "FLOAT"} if suffix == ".wav" else {}
    soundfile.write(root / split / f"{stem}{suffix}", samples, rate_hz, **options)
    if label is None:
        label = {"text": [f"music {stem}", f"a track called {stem}"], "tag": ["music"], "original_data": {}}
    (root / "label" / f"{stem}.json").write_text(label if isinstance(label, str) else json.dumps(label))


def sound(number: int, seconds: float = 2.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    rng = np.random.default_rng(number)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (200 + 17 * number) * t) + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def write_corpus(root: Path, train: int = 20, test: int = 4) -> Path:
    for split, count in (("train", train), ("test", test)):
        for n in range(count):
            number = n + 1000 * (split == "test")
            instrument = INSTRUMENTS[n % 3]
            attributes = {"instrument": instrument, "drums": ("none", "rock")[n % 2]}
            label = {
                "text": [f"{instrument} number {n}", f"a {instrument}", f"some {instrument} music"],
                "tag": [instrument, "music"],
                "original_data": {"title": "x", "attributes": attributes},
            }
            write_clip(root, split, f"{split}_{n:03d}", sound(number), label=label)
    return root
