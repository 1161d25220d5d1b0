"""How much a seam stands out: its level jump and spectral change beside those of the clip itself, or of real music."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig

SPAN_S = 0.1
"""Stretch on either side of a seam over which level and spectrum are taken."""

HOP_S = 0.01
_RANGE_DB = 60.0  # what lies further below the loudest is not heard beside it
_MOST_HZ = 20_000.0
_NEAR_S = 30.0  # how much of the clip on either side a seam is compared with
ENOUGH_S = 3.0
"""Sound of the clip that is enough to compare a seam with the clip itself; with less, it is compared with real music."""

PERCENT = 95
REAL_LEVEL_DB, REAL_CHANGE_DB = 8.0, 14.0
"""The 95th percentiles inside real music: 48 tracks of the demo corpus, see docs/long.md."""


class SeamMetrics(NamedTuple):
    """One seam beside everywhere else.

    Args:
        at_s: Where it is.
        level_jump_db: Difference of the level behind and before it.
        level_limit_db: What 95 of 100 places of the clip, or of real music, stay below.
        change_db: Distance of the spectra behind and before it: mean difference over the mel bins.
        change_limit_db: The same limit of that.
        own: Whether the limits are the clip's own.
    """

    at_s: float
    level_jump_db: float
    level_limit_db: float
    change_db: float
    change_limit_db: float
    own: bool

    @property
    def audible(self) -> bool:
        """Whether it stands out."""
        return self.level_jump_db > self.level_limit_db or self.change_db > self.change_limit_db


def analysis(sample_rate_hz: int) -> MelConfig:
    """The front end that seams are measured by, at any rate: 64 bins up to what is heard, a frame every 0.01 s."""
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


def jumps(mel_MN: Tensor, gap: int = 0) -> tuple[Tensor, Tensor]:
    """Level jump and spectral change between two stretches of `SPAN_S` that are `gap` frames apart, at every place.

    Args:
        mel_MN: See `decibel_mel`.
        gap: Frames between the stretches.

    Returns:
        `(level_jump_db, change_db)`, each [M - 2 span - gap + 1]; entry i has its first stretch from frame i on.
    """
    span = round(SPAN_S / HOP_S)
    spectrum_PN = mel_MN.unfold(0, span, 1).mean(-1)
    power_M = (mel_MN * (math.log(10.0) / 10.0)).exp().sum(-1)
    level_P = 10.0 * power_M.unfold(0, span, 1).mean(-1).log10()
    apart = span + gap
    return ((level_P[apart:] - level_P[:-apart]).abs(),
            (spectrum_PN[apart:] - spectrum_PN[:-apart]).abs().mean(-1))


def seam_metrics(
    waveform_CS: Tensor, sample_rate_hz: int, fades: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]
) -> list[SeamMetrics]:
    """Measure seams: the clip before a fade against the new sound behind it, or the other way about.

    Args:
        waveform_CS: The sound.
        sample_rate_hz: Its rate.
        fades: Of each seam the stretch `(first, last)` in which one sound fades into the other, in samples.
        kept: Stretches of the clip's own sound.

    Returns:
        One for each seam that has enough sound on either side.
    """
    found = []
    config = analysis(sample_rate_hz)
    hop, span = config.hop_length, round(SPAN_S / HOP_S)
    for first, last in fades:
        begin = max(0, (first - round(_NEAR_S * sample_rate_hz)) // hop * hop)
        near_CS = waveform_CS[:, begin : last + round(_NEAR_S * sample_rate_hz)]
        if near_CS.shape[1] < max(config.n_fft, 2 * span * hop):
            continue
        gap = round((last - first) / hop)
        level_P, change_P = jumps(decibel_mel(near_CS, sample_rate_hz), gap)
        place = round((first - begin) / hop) - span
        if not 0 <= place < len(level_P):
            continue
        inside = torch.zeros(len(level_P), dtype=torch.bool)
        edge = config.n_fft // 2 // hop  # frames that see beyond a border
        for start, end in kept:
            start, end = -((begin - start) // hop) + edge, (end - begin) // hop - edge
            inside[max(0, start) : max(0, end - 2 * span - gap + 1)] = True
        own = int(inside.sum()) * hop >= (ENOUGH_S - 2 * SPAN_S) * sample_rate_hz - gap * hop
        limits = [float(values_P[inside].quantile(PERCENT / 100)) if own else real
                  for values_P, real in ((level_P, REAL_LEVEL_DB), (change_P, REAL_CHANGE_DB))]
        found.append(SeamMetrics((first + last) / 2 / sample_rate_hz, float(level_P[place]), limits[0],
                                 float(change_P[place]), limits[1], own))
    return found
