"""Is it music, and the music that the words say? Checked from outside: by theory, by the ear's proxies, by wording."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from musiccm.data.demo.captions import captions, tags
from musiccm.data.demo.compose import PROGRESSIONS, chord_pitch_classes, compose, lead_voices
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ, TIMBRES, tone
from musiccm.data.demo.render import render
from musiccm.data.demo.world import Attributes, draw_attributes, track_rng

BAND = Attributes("piano", "strings", "dance", "band", "middle", "4/4", "major", 0, 120, 0.1)
# Written out from theory books: steps of the scales in semitones.
STEPS = {"major": "2212221", "minor": "2122122", "dorian": "2122212", "mixolydian": "2212212"}
# What a listener may call each attribute; none of them fits another value of the same group.
INSTRUMENT_WORDS = {
    "piano": ["piano"], "guitar": ["guitar"], "strings": ["strings", "violin"], "flute": ["flute"],
    "clarinet": ["clarinet"], "organ": ["organ"], "marimba": ["marimba", "mallets"], "bells": ["bells", "chimes"],
    "synth lead": ["synth lead", "lead synth"], "synth pad": ["synth pad", "synthesizer pad"],
}
DRUM_WORDS = {"none": ["no drums", "without drums", "no percussion"], "soft": ["percussion", "shaker"],
              "rock": ["rock", "backbeat"], "dance": ["dance", "four-on-the-floor"]}
TEMPO_WORDS = {"slow": ["slow", "unhurried"], "medium": ["moderate", "mid-tempo"], "fast": ["fast", "quick", "upbeat"]}
TEXTURE_WORDS = {"solo": ["melody", "solo"], "chords": ["chords"], "arpeggio": ["arpegg", "broken chords"],
                 "band": ["band", " over "]}
REGISTER_WORDS = {"low": ["low", "deep"], "middle": ["mid-range"], "high": ["high"]}


def scale(attributes: Attributes) -> set[int]:
    steps = [0, *map(int, STEPS[attributes.mode])]
    return {(attributes.root + int(total)) % 12 for total in np.cumsum(steps)}


def worlds(count: int) -> list[tuple[Attributes, np.random.Generator]]:
    drawn = []
    for index in range(count):
        rng = track_rng(11, "train", index)
        drawn.append((draw_attributes(rng), rng))
    return drawn


def says(text: str, words: list[str]) -> bool:
    return any(word in text for word in words)


def test_captions_say_what_was_asked_and_nothing_else() -> None:
    seen = set()
    for attributes, rng in worlds(300):
        texts = captions(attributes, rng)
        seen.update(texts)
        for text in texts:
            assert text == text.strip() and text and "{" not in text and not text.endswith(".")
            heard = {name for name, words in INSTRUMENT_WORDS.items() if says(text, words)}
            assert attributes.instrument in heard
            assert heard <= {attributes.instrument, attributes.backing}
            assert says(text, TEXTURE_WORDS[attributes.texture]), (text, attributes)
        for text in texts[:3]:  # the full ones
            assert f"{attributes.bpm} bpm" in text
            for value, table in [(attributes.drums, DRUM_WORDS), (attributes.tempo, TEMPO_WORDS)]:
                assert says(text, table[value]), (text, attributes)
            assert says(text, REGISTER_WORDS[attributes.register]), (text, attributes)
            assert (attributes.backing in heard_in(text)) == (attributes.texture == "band") or "full" not in text
        groups = dict(tag.split(": ") for tag in tags(attributes))
        assert groups["instrument"] == attributes.instrument and groups["drums"] == attributes.drums
        assert groups["tempo"] == ("slow" if attributes.bpm < 88 else "medium" if attributes.bpm < 122 else "fast")
        assert set(groups) >= {"texture", "register", "mode", "metre", "backing"}
    assert len(seen) > 1000, "wording hardly varies"


def heard_in(text: str) -> set[str]:
    return {name for name, words in INSTRUMENT_WORDS.items() if says(text, words)}


def test_the_world_is_as_wide_as_it_says() -> None:
    drawn = [attributes for attributes, _ in worlds(600)]
    assert {a.instrument for a in drawn} == set(INSTRUMENT_WORDS) and {a.drums for a in drawn} == set(DRUM_WORDS)
    assert {a.mode for a in drawn} == set(STEPS) and {a.root for a in drawn} == set(range(12))
    bpm = [a.bpm for a in drawn]
    assert 60 <= min(bpm) <= 64 and 156 <= max(bpm) <= 160
    assert {a.metre for a in drawn} == {"4/4", "3/4"} and {a.texture for a in drawn} == set(TEXTURE_WORDS)


def test_every_note_is_in_the_mode_and_in_time() -> None:
    for attributes, rng in worlds(120):
        notes = compose(attributes, rng, 10.24)
        allowed = scale(attributes)
        assert {note.pitch % 12 for note in notes} <= allowed, attributes
        seconds = 60 / attributes.bpm
        assert min(note.start for note in notes) == 0 and max(note.start for note in notes) * seconds > 10.24 - 4 * 2
        assert all(note.start * 2 % 1 == 0 and 0 < note.velocity <= 1 and note.length > 0 for note in notes)
        assert {note.part for note in notes} == (
            {"lead", "backing", "bass"} if attributes.texture == "band" else {"lead"}
        )


@pytest.mark.parametrize("mode", STEPS)
def test_a_band_plays_triads_with_the_melody_and_the_bass_on_them(mode: str) -> None:
    beats = BAND.beats_per_bar
    for root in range(12):
        attributes = replace(BAND, mode=mode, root=root)
        notes = compose(attributes, np.random.default_rng(root), 20.0)
        degrees = sorted(scale(attributes), key=lambda pitch: (pitch - root) % 12)
        triads = [{degrees[(d + step) % 7] for step in (0, 2, 4)} for d in range(7)]
        for bar in range(8):
            inside = [n for n in notes if bar * beats <= n.start < (bar + 1) * beats]
            chord = {n.pitch % 12 for n in inside if n.part == "backing"}
            assert chord in triads
            strong = [n for n in inside if n.part == "lead" and (n.start - bar * beats) % 2 == 0]
            assert {n.pitch % 12 for n in strong} <= chord
            bass = [n.pitch % 12 for n in inside if n.part == "bass"]
            assert bass[0] == degrees[triads.index(chord)], "the bass starts the bar on the chord's root"
            assert set(bass) <= chord


def close_voicings(chord: set[int], low: int, high: int) -> list[tuple[int, ...]]:
    """Every voicing of three different tones within an octave whose lowest lies in [low, high), by brute force."""
    found = []
    for bottom in range(low, high):
        for middle, top in product(range(bottom + 1, bottom + 12), repeat=2):
            if middle < top and {bottom % 12, middle % 12, top % 12} == chord:
                found.append((bottom, middle, top))
    return found


@pytest.mark.parametrize("centre", [48, 56, 60, 72])
def test_voices_move_as_little_as_any_close_voicing_allows(centre: int) -> None:
    for mode, root in product(STEPS, (0, 5, 9)):
        for progression in PROGRESSIONS[mode]:
            previous = None
            for degree in progression * 2:
                chord = chord_pitch_classes(root, mode, degree)
                voicing = lead_voices(chord, previous, centre)
                every = close_voicings(set(chord), centre - 10, centre + 6)
                assert voicing in every
                if previous is not None:
                    def moved(voices: tuple[int, ...], before: tuple[int, ...] = previous) -> int:
                        return sum(abs(a - b) for a, b in zip(voices, before, strict=True))

                    def drift(voices: tuple[int, ...]) -> float:
                        return abs(sum(voices) / 3 - centre)

                    # Least movement; a voicing that moves more is taken only to come home from far away.
                    assert all(moved(voicing) <= moved(v) + 0.2 * (drift(v) - drift(voicing)) + 1e-9 for v in every)
                    assert max(abs(a - b) for a, b in zip(voicing, previous, strict=True)) <= 5
                previous = voicing


def test_chords_of_a_track_are_led_and_not_jumped() -> None:
    attributes = replace(BAND, texture="chords", drums="none", backing="none")
    notes = compose(attributes, np.random.default_rng(1), 20.0)
    starts = sorted({note.start for note in notes})
    voicings = [sorted(note.pitch for note in notes if note.start == start) for start in starts]
    assert max(abs(a - b) for x, y in pairwise(voicings) for a, b in zip(x, y, strict=True)) <= 5


def beat_by_autocorrelation(waveform: np.ndarray, around_s: float) -> float:
    """The lag, within 30 % of `around_s`, at which onsets repeat best; half-wave rectified energy rises, 4 ms hops."""
    hop = 64
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    energy = np.log(1e-4 + np.convolve((frames**2).mean(axis=1), np.ones(4) / 4, mode="same"))
    onsets = np.maximum(np.diff(energy), 0)
    onsets -= onsets.mean()
    rate = SAMPLE_RATE_HZ / hop
    lags = np.arange(round(0.7 * around_s * rate), round(1.3 * around_s * rate) + 1)
    smooth = np.convolve(onsets, np.hanning(7), mode="same")
    scores = [float(np.dot(smooth[:-lag], smooth[lag:])) / (len(smooth) - lag) for lag in lags]
    return float(lags[int(np.argmax(scores))] / rate)


@pytest.mark.parametrize("bpm", [64, 97, 120, 158])
def test_onsets_come_at_the_stated_tempo(bpm: int) -> None:
    attributes = replace(BAND, instrument="marimba", backing="none", texture="solo", bpm=bpm)
    waveform = render(attributes, np.random.default_rng(bpm), 10.24)
    assert waveform.dtype == np.float32 and waveform.shape == (163840,) and np.abs(waveform).max() <= 0.7 + 1e-6
    beat_s = beat_by_autocorrelation(waveform, 60 / bpm)
    assert beat_s == pytest.approx(60 / bpm, rel=0.02)


def fingerprint(wave: np.ndarray, hz: float) -> np.ndarray:
    """Loudness of the first harmonics and between them in three stretches of a note, and its envelope, in dB."""
    features = []
    for begin, end in ((0.0, 0.25), (0.25, 0.75), (1.2, 2.0)):
        part = wave[int(begin * SAMPLE_RATE_HZ) : int(end * SAMPLE_RATE_HZ)]
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        frequency = np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE_HZ) / hz
        edges = np.arange(0.25, 9.5, 0.5)
        features += [power[(frequency >= a) & (frequency < b)].sum() for a, b in pairwise(edges)]
    features = 10 * np.log10(np.array(features) / np.max(features) + 1e-5)
    return features


def nearest(name: str, among: list[str], pitch: int) -> str:
    """Which instrument's tone at `pitch` is most like this one's a whole tone higher."""
    heard = fingerprint(tone(name, pitch + 2, True), 440 * 2 ** ((pitch + 2 - 69) / 12))
    known = {other: fingerprint(tone(other, pitch, True), 440 * 2 ** ((pitch - 69) / 12)) for other in among}
    return min(known, key=lambda other: float(np.abs(heard - known[other]).mean()))


def test_eleven_timbres_are_told_apart_by_ear() -> None:
    assert len(TIMBRES) == 11
    leads = [name for name in TIMBRES if name != "bass"]
    assert {name: nearest(name, leads, 60) for name in leads} == {name: name for name in leads}
    assert nearest("bass", list(TIMBRES), 36) == "bass"


def test_struck_and_plucked_tones_die_away_and_blown_and_bowed_ones_hold() -> None:
    def held(name: str) -> float:
        wave = tone(name, 60, True)
        early, late = (wave[int(a * SAMPLE_RATE_HZ) : int((a + 0.4) * SAMPLE_RATE_HZ)] for a in (0.2, 1.8))
        return float(np.sqrt((late**2).mean() / (early**2).mean()))

    assert all(held(name) < 0.5 for name in ("piano", "guitar", "marimba", "bells"))
    assert all(held(name) > 0.7 for name in ("strings", "flute", "clarinet", "organ", "synth lead", "synth pad"))
    pad, marimba = (np.abs(tone(name, 60, True))[: SAMPLE_RATE_HZ // 2] for name in ("synth pad", "marimba"))
    assert pad.argmax() > 0.3 * SAMPLE_RATE_HZ > 0.05 * SAMPLE_RATE_HZ > marimba.argmax()
