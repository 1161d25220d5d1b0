"""Mix notes and drums into a waveform."""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from musiccm.data.demo.compose import Note, compose
from musiccm.data.demo.drums import PATTERNS, one_shot
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ, play
from musiccm.data.demo.world import Attributes

PART_LEVEL = {"lead": 1.0, "backing": 0.34, "bass": 0.6}
DRUM_LEVEL = {"soft": 0.55, "rock": 0.6, "dance": 0.6}
PEAK = 0.7
#: Room tone, relative to the peak: recordings are never digitally silent between their notes.
ROOM_TONE = 1e-3


def add_at(mix: np.ndarray, start: int, wave: np.ndarray) -> None:
    """Add a wave to a mix from a sample on; what lies outside of the mix is left away."""
    start = max(start, 0)
    end = min(start + len(wave), len(mix))
    if end > start:
        mix[start:end] += wave[: end - start]


def impulse_response(rng: np.random.Generator) -> np.ndarray:
    """A room: half a second of decaying noise, of unit energy."""
    t = np.arange(int(0.5 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(t)).astype(np.float32) * np.exp(-t * rng.uniform(7, 13))
    return (tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


def _phrase_arc(beat: float, beats_per_bar: int) -> float:
    """Dynamics: each four-bar phrase swells to its middle and ebbs."""
    return 0.88 + 0.12 * np.sin(np.pi * ((beat / (4 * beats_per_bar)) % 1.0))


def render(attributes: Attributes, rng: np.random.Generator, duration_s: float) -> np.ndarray:
    """Compose and render a track.

    Args:
        attributes: what to play.
        rng: the track's generator.
        duration_s: length in seconds.

    Returns:
        Mono float32 waveform [S] at 16 kHz, peak 0.7.
    """
    samples = round(duration_s * SAMPLE_RATE_HZ)
    mix = np.zeros(samples, np.float32)
    beat_s = 60 / attributes.bpm
    notes: list[Note] = compose(attributes, rng, duration_s)
    player = {"lead": attributes.instrument, "backing": attributes.backing, "bass": "bass"}
    texture_level = 0.55 if attributes.texture == "chords" else 1.0
    for note in notes:
        lateness_s = rng.normal(0, 0.003)
        velocity = float(np.clip(note.velocity * _phrase_arc(note.start, attributes.beats_per_bar), 0.1, 1))
        wave = play(player[note.part], note.pitch, note.length * beat_s, velocity)
        level = PART_LEVEL[note.part] * (texture_level if note.part == "lead" else 1.0)
        add_at(mix, int((note.start * beat_s + lateness_s) * SAMPLE_RATE_HZ), level * wave)
    wet = oaconvolve(mix, impulse_response(rng))[:samples].astype(np.float32)
    mix = mix + attributes.reverb * wet * 1.5
    mix /= np.sqrt(np.mean(mix**2)) / 0.12 + 1e-9
    if attributes.drums != "none":
        _add_drums(mix, attributes, beat_s)
    mix /= np.abs(mix).max()
    mix += ROOM_TONE * rng.standard_normal(samples, dtype=np.float32)
    return (mix * (PEAK / np.abs(mix).max())).astype(np.float32)


def _add_drums(mix: np.ndarray, attributes: Attributes, beat_s: float) -> None:
    bar_s = attributes.beats_per_bar * beat_s
    level = DRUM_LEVEL[attributes.drums]
    for bar in range(int(np.ceil(len(mix) / SAMPLE_RATE_HZ / bar_s))):
        for name, beats, velocity in PATTERNS[attributes.drums, attributes.beats_per_bar]:
            for beat in beats:
                add_at(mix, int((bar * bar_s + beat * beat_s) * SAMPLE_RATE_HZ), level * velocity * one_shot(name))
