"""Additive timbres with real envelopes, kept as one long tone a pitch and shortened per note, as a sampler does."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 16000
TONE_S = 4.2
#: Seconds in which a note fades once it is let go.
RELEASE_S = {
    "piano": 0.12, "guitar": 0.1, "strings": 0.22, "flute": 0.08, "clarinet": 0.06, "organ": 0.04,
    "marimba": 0.25, "bells": 0.6, "synth lead": 0.05, "synth pad": 0.5, "bass": 0.06,
}  # fmt: skip
#: Loudness of a note of each, so that a lead stands out whoever plays it.
GAIN = {
    "piano": 0.9, "guitar": 0.9, "strings": 0.75, "flute": 0.8, "clarinet": 0.75, "organ": 0.6,
    "marimba": 1.1, "bells": 0.8, "synth lead": 0.6, "synth pad": 0.7, "bass": 0.95,
}  # fmt: skip

Array = np.ndarray


def _time() -> Array:
    return np.arange(int(TONE_S * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ


def _attack(t: Array, seconds: float) -> Array:
    return np.minimum(t / seconds, 1.0) ** 0.7


def _partials(
    t: Array, rng: np.random.Generator, ratios: Array, amplitudes: Array, hz: float, decays: Array | None = None,
    vibrato: float = 0.0,
) -> Array:  # fmt: skip
    """Sum of partials below Nyquist; `decays` in 1/s, `vibrato` is the relative depth of a 5.4 Hz wobble."""
    sweep = t.astype(np.float64)
    if vibrato:
        depth = vibrato * np.clip((t - 0.15) / 0.3, 0, 1)
        sweep = np.cumsum(1 + depth * np.sin(2 * np.pi * 5.4 * t)) / SAMPLE_RATE_HZ
    out = np.zeros_like(t)
    for index, (ratio, amplitude) in enumerate(zip(ratios, amplitudes, strict=True)):
        if ratio * hz > 7600 or amplitude < 1e-4:
            continue
        phase = (ratio * hz * sweep + rng.random()) % 1.0
        partial = np.float32(amplitude) * np.sin(2 * np.pi * phase.astype(np.float32))
        out += partial if decays is None else partial * np.exp(-np.float32(decays[index]) * t)
    return out


def _noise(rng: np.random.Generator, t: Array, smooth: int) -> Array:
    noise = rng.standard_normal(len(t)).astype(np.float32)
    return noise if smooth <= 1 else np.convolve(noise, np.ones(smooth, np.float32) / smooth, mode="same")


def _piano(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 19)
    amplitudes = k ** (-1.5 + 0.5 * bright)
    decays = (0.9 + 0.32 * k) * (hz / 262) ** 0.5
    strings = [_partials(t, rng, k * np.sqrt(1 + 4e-4 * k**2), amplitudes, hz * d, decays) for d in (1.0, 1.0009)]
    hammer = 0.25 * _noise(rng, t, 5) * np.exp(-t * 160)
    return (strings[0] + strings[1]) * _attack(t, 0.004) + hammer


def _guitar(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 22)
    amplitudes = np.abs(np.sin(np.pi * k * 0.22)) * k ** (-0.95 + 0.25 * bright)
    return 1.6 * _partials(t, rng, k, amplitudes, hz, 1.6 + 0.75 * k) * _attack(t, 0.002) + 0.35 * _noise(
        rng, t, 2
    ) * np.exp(-t * 220)


def _strings(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 16)
    amplitudes = k ** (-1.15 + 0.25 * bright) * (1 + 0.7 * np.exp(-(((k * hz - 2200) / 700) ** 2)))
    players = sum(_partials(t, rng, k, amplitudes, hz * d, vibrato=0.006) for d in (0.9972, 1.0, 1.0031))
    return (0.5 * players + 0.05 * _noise(rng, t, 3)) * _attack(t, 0.14)


def _flute(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    amplitudes = np.array([1.0, 0.28 + 0.15 * bright, 0.09, 0.03, 0.012])
    tremolo = 1 + 0.12 * np.sin(2 * np.pi * 5.0 * t) * np.clip((t - 0.2) / 0.3, 0, 1)
    tone = _partials(t, rng, np.arange(1, 6), amplitudes, hz, vibrato=0.004) * tremolo
    breath = 0.16 * _noise(rng, t, 2) * (0.5 + np.exp(-t * 18))
    return (1.3 * tone + breath) * _attack(t, 0.06)


def _clarinet(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 14)
    amplitudes = np.where(k % 2 == 1, 1.0, 0.06) * k ** (-0.9 + 0.25 * bright)
    return 1.1 * _partials(t, rng, k, amplitudes, hz) * _attack(t, 0.045)


def _organ(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    ratios = np.array([0.5, 1, 1.5, 2, 3, 4, 6, 8])
    amplitudes = np.array([0.7, 1, 0.35, 0.8, 0.5, 0.45, 0.3, 0.3 + 0.2 * bright])
    rotor = 1 + 0.18 * np.sin(2 * np.pi * 6.6 * t)
    return 0.75 * _partials(t, rng, ratios, amplitudes, hz) * rotor * _attack(t, 0.008)


def _marimba(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    amplitudes = np.array([1.0, 0.28 + 0.2 * bright, 0.12])
    tone = _partials(t, rng, np.array([1.0, 3.98, 9.9]), amplitudes, hz, np.array([5.5, 16.0, 40.0]))
    return 1.8 * tone * _attack(t, 0.002) + 0.3 * _noise(rng, t, 6) * np.exp(-t * 260)


def _bells(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    ratios = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.51, 2.98, 4.1, 5.4])
    amplitudes = np.array([0.35, 1.0, 0.4, 0.35, 0.7, 0.35, 0.3, 0.25 + 0.2 * bright, 0.15])
    decays = np.array([0.8, 1.3, 1.7, 2.0, 2.3, 3.0, 3.6, 5.0, 7.0])
    return _partials(t, rng, ratios, amplitudes, hz, decays) * _attack(t, 0.001)


def _synth_lead(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 24)
    amplitudes = np.abs(np.sin(np.pi * k * 0.28)) / k ** (0.75 - 0.15 * bright)
    return 1.5 * _partials(t, rng, k, amplitudes, hz, vibrato=0.009) * _attack(t, 0.01)


def _synth_pad(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 9)
    amplitudes = 1 / k**1.2 / (1 + (k * hz / (900 + 500 * bright)) ** 2)
    voices = sum(_partials(t, rng, k, amplitudes, hz * d) for d in (0.993, 0.9978, 1.0024, 1.0071))
    return 0.9 * voices * (1 + 0.25 * np.sin(2 * np.pi * 0.9 * t)) * _attack(t, 0.4)


def _bass(t: Array, hz: float, bright: float, rng: np.random.Generator) -> Array:
    k = np.arange(1, 9)
    return 1.5 * _partials(t, rng, k, k ** (-1.4 + 0.3 * bright), hz, 0.8 + 0.5 * k) * _attack(t, 0.006)


TIMBRES: dict[str, Callable[[Array, float, float, np.random.Generator], Array]] = {
    "piano": _piano, "guitar": _guitar, "strings": _strings, "flute": _flute, "clarinet": _clarinet, "organ": _organ,
    "marimba": _marimba, "bells": _bells, "synth lead": _synth_lead, "synth pad": _synth_pad, "bass": _bass,
}  # fmt: skip


#: Where the processes that write a corpus leave their tones for each other, see `share_tones`.
_shared: Path | None = None


def share_tones(folder: Path) -> None:
    """Have this process take tones from a folder, and leave those there that it had to compute.

    Tones are most of the work until all are there: without this each process computes each of them.

    Args:
        folder: Must exist, and hold tones of this version alone.
    """
    global _shared
    _shared = folder


@cache
def tone(instrument: str, pitch: int, loud: bool) -> Array:
    """A long tone of an instrument at a MIDI pitch, soft or loud, float32 at 16 kHz, unit scale.

    Random phases and noise depend on (instrument, pitch, loud) alone, so a track's bytes never depend on what was
    rendered before it.
    """
    if _shared is None:
        return _computed_tone(instrument, pitch, loud)
    path = _shared / f"{instrument}-{pitch}-{int(loud)}.npy"
    with suppress(FileNotFoundError):
        return np.load(path)
    found = _computed_tone(instrument, pitch, loud)
    with suppress(OSError):  # a full disk is the tracks' to complain of
        own = path.with_name(f"{os.getpid()}.part.npy")
        np.save(own, found)
        own.replace(path)
    return found


def _computed_tone(instrument: str, pitch: int, loud: bool) -> Array:
    rng = np.random.default_rng([list(TIMBRES).index(instrument), pitch, int(loud)])
    hz = 440.0 * 2 ** ((pitch - 69) / 12)
    wave = TIMBRES[instrument](_time(), hz, float(loud), rng)
    rms = np.sqrt(np.mean(wave[: SAMPLE_RATE_HZ // 2] ** 2))
    return (GAIN[instrument] * wave / (rms + 1e-9) * 0.2).astype(np.float32)


def play(instrument: str, pitch: int, length_s: float, velocity: float) -> Array:
    """One note: a blend of the soft and loud tones by velocity, let go after `length_s`."""
    release = int(RELEASE_S[instrument] * SAMPLE_RATE_HZ)
    held = int(length_s * SAMPLE_RATE_HZ)
    total = min(held + release, int(TONE_S * SAMPLE_RATE_HZ))
    soft, loud = tone(instrument, pitch, False)[:total], tone(instrument, pitch, True)[:total]
    wave = velocity * ((1 - velocity) * soft + velocity * loud)
    fade = min(release, total)
    wave[total - fade :] *= np.linspace(1, 0, fade, dtype=np.float32) ** 2
    return wave
