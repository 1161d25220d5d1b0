"""One track of the demo corpus: its attributes, its words and its sound, whatever layout it is written in."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from musiccm.data.demo.captions import captions
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ
from musiccm.data.demo.render import render
from musiccm.data.demo.world import Attributes, draw_attributes, track_rng
from musiccm.files import write_bytes

DURATION_S = 10.24


@dataclass(frozen=True)
class Track:
    """What one track is.

    Args:
        attributes: What was composed.
        texts: Captions.
        waveform_S: The sound, mono, at `SAMPLE_RATE_HZ`.
    """

    attributes: Attributes
    texts: list[str]
    waveform_S: np.ndarray


def make_track(seed: int, split: str, index: int) -> Track:
    """Compose, word and render a track, a function of (seed, split, index) alone."""
    rng = track_rng(seed, split, index)
    attributes = draw_attributes(rng)
    texts = captions(attributes, rng)
    return Track(attributes, texts, render(attributes, rng, DURATION_S))


def other_rendering(seed: int, split: str, index: int, number: int = 1) -> np.ndarray:
    """Another piece of the same attributes, and so for the same captions: other notes, timing and room.

    It is what a perfect model could answer the captions of `make_track(seed, split, index)` with.

    Args:
        seed: Of the corpus.
        split: Of the track.
        index: Of the track.
        number: Which of the other pieces, from 1.

    Returns:
        The sound, mono, at `SAMPLE_RATE_HZ`.
    """
    attributes = draw_attributes(track_rng(seed, split, index))
    return render(attributes, track_rng(seed, split, index, number), DURATION_S)


def write_encoded(path: Path, waveform_S: np.ndarray, **options) -> None:
    """Encode a waveform and write the file whole or not at all.

    Args:
        path: Where to.
        waveform_S: The sound, mono, at `SAMPLE_RATE_HZ`.
        **options: Of `soundfile.write`: format, subtype and so on.

    Raises:
        MusiccmError: The disk is full or not writable.
    """
    # Through memory, so that a full disk is an OSError with its cause; soundfile would fail an assertion.
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform_S, SAMPLE_RATE_HZ, **options)
    write_bytes(path, encoded.getbuffer())
