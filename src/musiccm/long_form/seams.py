"""How much a seam stands out: its level jump and spectral change beside those of the clip itself, or of real music."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig

PERCENT = 95

REAL_DB = {1.0: (5.0, 7.9), 0.4: (8.4, 11.3), 0.1: (12.1, 15.4)}
"""By the seconds on either side of a place over which level and spectrum are taken, the longest that fit: the 95th
percentiles of level jump and spectral change inside real music, 48 tracks of the demo corpus (docs/long.md)."""

LEAST_DB = (1.0, 2.0)
"""Limits of a clip that hardly changes: less of a level jump or a spectral change is not warned of."""

HOP_S = 0.01
_RANGE_DB = 60.0  # what lies further below the loudest is masked by it
_MOST_HZ = 20_000.0
NEAR_S = 30.0  # how much of the clip on either side a seam is compared with
ENOUGH_S = 3.0
"""Places inside the clip that are enough to compare a seam with; with fewer, it is compared with real music."""


class SeamMetrics(NamedTuple):
    """One seam beside everywhere else.

    Args:
        at_s: Where it is.
        level_jump_db: Difference of the level behind and before it.
        level_limit_db: What 95 of 100 places of the clip, or of real music, stay below.
        change_db: Distance of the spectra behind and before it: mean difference over the mel bins.
        change_limit_db: The same limit of that.
        span_s: Seconds on either side over which both are taken.
        own: Whether the limits are the clip's own.
    """

    at_s: float
    level_jump_db: float
    level_limit_db: float
    change_db: float
    change_limit_db: float
    span_s: float
    own: bool

    @property
    def audible(self) -> bool:
        """Whether it stands out."""
        return self.level_jump_db > self.level_limit_db or self.change_db > self.change_limit_db


def analysis(sample_rate_hz: int) -> MelConfig:
    """The front end that seams are measured by, at any rate: 64 bins up to 20 kHz at most, a frame every 0.01 s."""
    n_fft = 2 ** round(math.log2(0.064 * sample_rate_hz))
    return MelConfig(sample_rate_hz, n_fft, n_fft, max(1, round(HOP_S * sample_rate_hz)), 64, 0.0,
                     min(sample_rate_hz / 2, _MOST_HZ))


def decibel_mel(waveform_CS: Tensor, sample_rate_hz: int) -> Tensor:
    """Mel of the channels' mean power in decibels, [M, N], no lower than 60 dB below its loudest.

    Args:
        waveform_CS: Sound of any level.
        sample_rate_hz: Its rate.
    """
    peak = float(waveform_CS.abs().max())
    mel_CMN = LogMel(analysis(sample_rate_hz))(waveform_CS.float() * (0.5 / max(peak, 1e-9)))
    mel_MN = 10.0 * mel_CMN.exp().square().mean(dim=0).log10()
    return mel_MN.clamp(min=float(mel_MN.max()) - _RANGE_DB)


def jumps(waveform_CS: Tensor, sample_rate_hz: int, span_s: float, fade_s: float) -> tuple[Tensor, Tensor]:
    """Level jump and spectral change between the stretches on either side of a fade, for every place of the fade.

    Args:
        waveform_CS: Sound of any level.
        sample_rate_hz: Its rate.
        span_s: Seconds of a stretch.
        fade_s: Seconds of the fade, none of which is in the stretches.

    Returns:
        `(level_jump_db, change_db)`: of entry i the first stretch begins at frame i, of `HOP_S` each.
    """
    mel_MN, span = decibel_mel(waveform_CS, sample_rate_hz), round(span_s / HOP_S)
    power_M = (mel_MN * (math.log(10.0) / 10.0)).exp().sum(-1)
    level_P, spectrum_PN = 10.0 * _means(power_M[:, None], span)[:, 0].log10(), _means(mel_MN, span)
    apart = span + _gap(sample_rate_hz, fade_s)
    return ((level_P[apart:] - level_P[:-apart]).abs(),
            (spectrum_PN[apart:] - spectrum_PN[:-apart]).abs().mean(-1))


def _edge(sample_rate_hz: int) -> int:
    """Frames on either side of a border that see beyond it."""
    config = analysis(sample_rate_hz)
    return -(-config.n_fft // 2 // config.hop_length)


def _gap(sample_rate_hz: int, fade_s: float) -> int:
    """Frames between the stretches on either side of a fade."""
    return round(fade_s / HOP_S) + 2 * _edge(sample_rate_hz)


def _means(values_MN: Tensor, span: int) -> Tensor:
    """Means over `span` frames from every frame on."""
    sums_MN = torch.nn.functional.pad(values_MN.double().cumsum(0), (0, 0, 1, 0))
    return ((sums_MN[span:] - sums_MN[:-span]) / span).to(values_MN)


def seam_metrics(
    waveform_CS: Tensor,
    sample_rate_hz: int,
    fades: Sequence[tuple[int, int]],
    kept: Sequence[tuple[int, int]],
    longest_s: float = 1.0,
) -> list[SeamMetrics]:
    """Measure seams: the clip before a fade against the new sound behind it, or the other way about.

    Args:
        waveform_CS: The sound.
        sample_rate_hz: Its rate.
        fades: Of each seam the stretch `(first, last)` in which one sound fades into the other, in samples.
        kept: Stretches of the clip's own sound.
        longest_s: Most seconds on either side, of those of `REAL_DB`. Over a second, a step of level shows best.

    Returns:
        One for each seam that has a tenth of a second of sound on either side.
    """
    length, found = waveform_CS.shape[1], []
    hop, edge = analysis(sample_rate_hz).hop_length, _edge(sample_rate_hz)
    near = round(NEAR_S * sample_rate_hz)
    ordered = [0, *(place for fade in sorted(fades) for place in fade), length]
    for number, (first, last) in enumerate(sorted(fades)):
        room = min(first - ordered[2 * number], ordered[2 * number + 3] - last) - edge * hop
        fitting = [span_s for span_s in REAL_DB if span_s <= longest_s and span_s * sample_rate_hz <= room]
        if not fitting:
            continue
        begin = max(0, (first - near) // hop * hop)
        inside = [(start - begin, end - begin) for start, end in kept]
        found.append(_measured(waveform_CS[:, begin : last + near], sample_rate_hz, max(fitting),
                               (first - begin, last - begin), inside, (first + last) / 2 / sample_rate_hz))
    return found


def _measured(
    near_CS: Tensor, sample_rate_hz: int, span_s: float, fade: tuple[int, int], kept: Sequence[tuple[int, int]],
    at_s: float,
) -> SeamMetrics:
    """One seam; places are counted from the start of the sound around it."""
    hop, edge, span = analysis(sample_rate_hz).hop_length, _edge(sample_rate_hz), round(span_s / HOP_S)
    fade_s = (fade[1] - fade[0]) / sample_rate_hz
    level_P, change_P = jumps(near_CS, sample_rate_hz, span_s, fade_s)
    place = min(max(0, round(fade[0] / hop) - edge - span), len(level_P) - 1)  # a sound's last frame may be a part
    inside_P = torch.zeros(len(level_P), dtype=torch.bool)
    for start, end in kept:
        first = -(-start // hop) + edge if start > 0 else 0
        inside_P[first : max(first, end // hop - edge - 2 * span - _gap(sample_rate_hz, fade_s) + 1)] = True
    own = int(inside_P.sum()) * hop >= ENOUGH_S * sample_rate_hz
    limits = [max(least, float(values_P[inside_P].quantile(PERCENT / 100))) if own else real
              for values_P, real, least in zip((level_P, change_P), REAL_DB[span_s], LEAST_DB, strict=True)]
    return SeamMetrics(at_s, float(level_P[place]), limits[0], float(change_P[place]), limits[1], span_s, own)
