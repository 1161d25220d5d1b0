"""A scene as sound: notes and drums on one grid of beats, by the instruments of the other world."""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from musiccm.data.demo.compose import MELODY_CENTRE, PROGRESSIONS, chord_pitch_classes
from musiccm.data.demo.drums import PATTERNS, one_shot
from musiccm.data.demo.events.world import DURATION_S, Event, Scene, stroke_s
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ, play
from musiccm.data.demo.render import DRUM_LEVEL, PEAK, ROOM_TONE, add_at, impulse_response
from musiccm.data.demo.world import MODES

#: Loudness of a melody's sounding part, root mean square, beside the drums' own level.
MELODY_LEVEL = 0.12
#: Peak of strokes, which are sparse.
STROKE_PEAK = 0.5
#: Velocities on the beat and between: accents mark the beat.
ON_BEAT, OFF_BEAT = 0.85, 0.45
#: Share of beats that are two notes; the rest are one. Every beat begins a note.
DIVIDED = 0.35


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Play a scene.

    Args:
        scene: What to play.
        rng: Draws the notes, their timing and the room.

    Returns:
        Mono float32 waveform [S] of `DURATION_S` at 16 kHz, peak 0.7.
    """
    samples = round(DURATION_S * SAMPLE_RATE_HZ)
    mix, drums = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    borders = scene.borders_s()
    for event in scene.events:
        sounding = [place for place, events in enumerate(scene.sections) if event in events]
        start_s, end_s = borders[sounding[0]], borders[sounding[-1] + 1]
        if event.kind == "drums":
            _add_drums(drums, event, scene.bpm, start_s, end_s)
        elif event.kind == "strokes":
            mix += _strokes(scene, event, rng, start_s, samples)
        else:
            mix += _melody(scene, event, rng, start_s, end_s, samples)
    wet = oaconvolve(mix, impulse_response(rng))[:samples].astype(np.float32)
    mix = mix + scene.reverb * wet * 1.5 + drums
    mix /= np.abs(mix).max()
    mix += ROOM_TONE * rng.standard_normal(samples, dtype=np.float32)
    return (mix * (PEAK / np.abs(mix).max())).astype(np.float32)


def _place(out: np.ndarray, wave: np.ndarray, start_s: float, rng: np.random.Generator) -> None:
    add_at(out, int((start_s + rng.normal(0, 0.003)) * SAMPLE_RATE_HZ), wave)


def _scale(scene: Scene) -> list[int]:
    centre = MELODY_CENTRE[scene.register]
    return [pitch for pitch in range(centre - 8, centre + 10) if (pitch - scene.root) % 12 in MODES[scene.mode]]


def _melody(
    scene: Scene, event: Event, rng: np.random.Generator, start_s: float, end_s: float, samples: int
) -> np.ndarray:
    """A line that begins a note on every beat, and no note twice."""
    beat_s, scale = 60 / scene.bpm, _scale(scene)
    progressions = PROGRESSIONS[scene.mode]
    progression = progressions[int(rng.integers(len(progressions)))]
    divided = rng.random(4) < DIVIDED  # a bar's rhythm, which comes back
    position, out = int(rng.integers(len(scale) // 3, 2 * len(scale) // 3)), np.zeros(samples, np.float32)
    beats = round((end_s - start_s) / beat_s + 0.49)
    for beat in range(beats):
        tones = chord_pitch_classes(scene.root, scene.mode, progression[beat // 2 % 4])
        for half in range(2 if divided[beat % 4] else 1):
            step = int(rng.choice((-3, -2, -1, 1, 2, 3), p=(0.08, 0.17, 0.25, 0.25, 0.17, 0.08)))
            if not 0 <= position + step < len(scale):
                step = -step
            position += step
            if half == 0 and beat % 2 == 0 and scale[position] % 12 not in tones:
                near = [place for place in (position - 1, position + 1)
                        if 0 <= place < len(scale) and place != position - step and scale[place] % 12 in tones]
                position = near[0] if near else position
            begins_s = start_s + (beat + half / 2) * beat_s
            length_s = min((0.5 if divided[beat % 4] else 1.0) * beat_s * 0.92, end_s - begins_s)
            if length_s > 0.08:
                velocity = float(np.clip((OFF_BEAT if half else ON_BEAT) + rng.normal(0, 0.03), 0.1, 1))
                _place(out, play(event.sound, scale[position], length_s, velocity), begins_s, rng)
    sounding = out[int(start_s * SAMPLE_RATE_HZ): int(end_s * SAMPLE_RATE_HZ)]
    return out * (MELODY_LEVEL / (np.sqrt(np.mean(sounding**2)) + 1e-9))


def _strokes(scene: Scene, event: Event, rng: np.random.Generator, start_s: float, samples: int) -> np.ndarray:
    """So many single notes on the beat, chord tones, and silence behind them."""
    out, apart_s = np.zeros(samples, np.float32), stroke_s(scene.bpm)
    tones = [pitch for pitch in _scale(scene) if pitch % 12 in chord_pitch_classes(scene.root, scene.mode, 0)]
    for number in range(event.count):
        pitch = tones[int(rng.integers(len(tones)))]
        wave = play(event.sound, pitch, min(0.7 * apart_s, 0.5), float(np.clip(0.85 + rng.normal(0, 0.03), 0.1, 1)))
        _place(out, wave, start_s + number * apart_s, rng)
    return out * (STROKE_PEAK / np.abs(out).max())


def _add_drums(mix: np.ndarray, event: Event, bpm: int, start_s: float, end_s: float) -> None:
    beat_s, level = 60 / bpm, DRUM_LEVEL[event.sound]
    for bar in range(int(np.ceil((end_s - start_s) / (4 * beat_s)))):
        for name, beats, velocity in PATTERNS[event.sound, 4]:
            for beat in beats:
                hit_s = start_s + (4 * bar + beat) * beat_s
                if hit_s < end_s - 0.02:
                    add_at(mix, int(hit_s * SAMPLE_RATE_HZ), level * velocity * one_shot(name))
