"""What is done to every clip before it leaves: its level, its ends, and a word where there is next to nothing in it."""

from __future__ import annotations

import logging

from torch import Tensor

from musiccm.audio.loudness import loudness_lufs, near_silence
from musiccm.audio.output_level import check_level, levelled

log = logging.getLogger(__name__)


def finished(waveform_S: Tensor, sample_rate_hz: int, level: str, name: str) -> Tensor:
    """Bring a clip to its level (`audio/output_level.py`), and warn where it is near silence.

    Args:
        waveform_S: The clip, on the CPU.
        sample_rate_hz: Its rate.
        level: `none`, `peak` or `loudness`.
        name: What the warning calls it, such as its text.

    Returns:
        The clip.

    Raises:
        MusiccmError: The level is unknown.
    """
    check_level(level)
    lufs = loudness_lufs(waveform_S, sample_rate_hz)
    if found := near_silence(waveform_S, lufs):
        warn_of_silence(name, found)
    return levelled(waveform_S, sample_rate_hz, level, lufs)


def warn_of_silent_edit(name: str, new_CS: Tensor, sample_rate_hz: int) -> None:
    """Warn where the new sound of an edit is near silence, in its loudest channel.

    Args:
        name: Of the clip that was edited.
        new_CS: What was made, as it is in the result, on the CPU.
        sample_rate_hz: Its rate.
    """
    loudest_S = new_CS[int(new_CS.abs().amax(dim=1).argmax())].float()
    if found := near_silence(loudest_S, loudness_lufs(loudest_S, sample_rate_hz)):
        warn_of_silence(f"the new sound in {name}", found)


def warn_of_silence(name: str, found: str) -> None:
    """Say that music is near silence.

    Args:
        name: What it is called.
        found: What was measured.
    """
    log.warning("%s: near silence (%s), whose level is left as it is; try another seed or text", name, found)
