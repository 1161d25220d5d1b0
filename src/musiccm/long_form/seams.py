"""How much a seam stands out: its level jump and spectral flux beside those of the music itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig

SPAN_FRAMES = 10
"""Mel frames on either side of a place over which level and spectrum are taken: 0.1 s at MusicLDM's hop."""


class SeamMetrics(NamedTuple):
    """Seams beside everywhere else; medians.

    Args:
        level_jump_db: Difference of the level behind and before a seam.
        usual_level_jump_db: The same elsewhere.
        flux: Distance of the spectra behind and before a seam: mean difference over the mel bins, in decibels.
        usual_flux: The same elsewhere.
        n: Seams.
    """

    level_jump_db: float
    usual_level_jump_db: float
    flux: float
    usual_flux: float
    n: int


def jumps(mel_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Level jump and spectral flux at every place of a mel that has `SPAN_FRAMES` on either side.

    Args:
        mel_MN: Natural-log mel.

    Returns:
        `(level_jump_db, flux_db)`, each [M - 2 SPAN_FRAMES + 1]; entry i belongs to the border before frame
        `i + SPAN_FRAMES`.
    """
    decibel = 20.0 / torch.log(torch.tensor(10.0))
    spans_PN = mel_MN.unfold(0, SPAN_FRAMES, 1).mean(-1) * decibel
    energy_P = mel_MN.exp().square().sum(-1).unfold(0, SPAN_FRAMES, 1).mean(-1)
    level_P = 10.0 * energy_P.clamp(min=1e-10).log10()
    return (level_P[SPAN_FRAMES:] - level_P[:-SPAN_FRAMES]).abs(), (
        spans_PN[SPAN_FRAMES:] - spans_PN[:-SPAN_FRAMES]).abs().mean(-1)


def seam_metrics(waveform_S: Tensor, seams_s: Sequence[float], mel: MelConfig) -> SeamMetrics | None:
    """Measure seams in a sound.

    Args:
        waveform_S: The sound.
        seams_s: Where they are.
        mel: The front end.

    Returns:
        The metrics; None where no seam has enough sound on either side.
    """
    if len(waveform_S) < max(mel.n_fft, 2 * SPAN_FRAMES * mel.hop_length):
        return None
    level, flux = jumps(LogMel(mel)(waveform_S))
    places = [round(s * mel.sample_rate_hz / mel.hop_length) - SPAN_FRAMES for s in seams_s]
    places = [place for place in places if 0 <= place < len(level)]
    if not places:
        return None
    elsewhere = torch.ones(len(level), dtype=torch.bool)
    for place in places:
        elsewhere[max(0, place - SPAN_FRAMES) : place + SPAN_FRAMES + 1] = False
    usual = elsewhere if elsewhere.any() else ~elsewhere
    at = torch.tensor(places)
    medians = [float(values[where].median()) for values in (level, flux) for where in (at, usual)]
    return SeamMetrics(medians[0], medians[1], medians[2], medians[3], len(places))
