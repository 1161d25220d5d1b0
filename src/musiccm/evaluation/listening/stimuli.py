"""Clips of several systems brought together for a listening test: one length, one rate, one loudness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from musiccm.audio import read_audio
from musiccm.audio.loudness import NEAR_SILENCE_LUFS, decibels, loudness_lufs, true_peak
from musiccm.audio.output_level import CEILING_DBTP, TARGET_LUFS, faded
from musiccm.audio.resample import resample
from musiccm.data.audio_folder import AudioFolder, FolderClip, captions_of
from musiccm.data.names import pair_names
from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.degraded import degraded

Form = Literal["plain", "lowpass", "noise"]
#: Clips of a shorter length cannot be compared, and have no gated loudness.
LEAST_CLIP_S = 1.0
#: Rates that every browser plays.
MOST_RATE_HZ = 48_000


@dataclass(frozen=True)
class Item:
    """What was asked of every system: the id, the caption if there is one, the length, and the file of each system."""

    id: str
    caption: str | None
    duration_s: float
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Sound:
    """One file of a page: whose clip it is, in which form, and which of several equal copies."""

    system: str
    item: str
    form: Form = "plain"
    copy: int = 0


def paired_items(
    folders: Mapping[str, AudioFolder], captions: Mapping[str, str] | None, captions_from: str, seconds: float | None
) -> tuple[list[Item], dict[str, list[str]]]:
    """Pair the clips of all systems by their names.

    Args:
        folders: By system, scanned.
        captions: By clip id; None where listeners see none.
        captions_from: Where they come from, for messages.
        seconds: Take at most this much from the start of every clip.

    Returns:
        The items that every system has, by id; and of each system the ids of its clips that another one lacks.

    Raises:
        MusiccmError: No clip is there of every system, names could mean several clips, or a caption is missing.
    """
    systems = list(folders)
    first, *others = systems
    clips = {name: {clip.id: clip for clip in folders[name].clips} for name in systems}
    found: dict[str, dict[str, FolderClip]] = {name: {first: clip} for name, clip in clips[first].items()}
    used: dict[str, set[str]] = {name: set() for name in systems}
    for other in others:
        pairs = pair_names(clips[first], clips[other])
        if pairs.ambiguous:
            raise MusiccmError(f"{folders[first].root}: {pairs.ambiguous[0]}: several clips of {other} "
                               f"({folders[other].root}) have this name in different Unicode forms; rename them")
        for name, partner in pairs.pairs.items():
            found[name][other] = clips[other][partner]
    whole = {name: of for name, of in found.items() if len(of) == len(systems)}
    for of in whole.values():
        for system, clip in of.items():
            used[system].add(clip.id)
    if not whole:
        raise MusiccmError(f"no clip is there of every system: {', '.join(_found(folders[name]) for name in systems)}; "
                           "clips are paired by their paths below the folders without the suffix")
    texts = _captions(whole, captions, captions_from)
    items = []
    for name, of in sorted(whole.items()):
        duration_s = min(clip.audio.frames / clip.audio.sample_rate_hz for clip in of.values())
        items.append(Item(name, texts.get(name), duration_s if seconds is None else min(duration_s, seconds),
                          {system: clip.path for system, clip in of.items()}))
    return items, {system: sorted(set(clips[system]) - used[system]) for system in systems}


def _found(folder: AudioFolder) -> str:
    return f"{len(folder.clips)} in {folder.root} (first {folder.clips[0].id})"


def _captions(ids: Iterable[str], captions: Mapping[str, str] | None, captions_from: str) -> dict[str, str]:
    if captions is None:
        return {}
    ids = sorted(ids)
    texts, pairs = captions_of(ids, captions)
    if missing := [name for name in ids if name not in texts]:
        why = "several captions have this name in different Unicode forms" if missing[0] in pairs.ambiguous else (
            f"no caption for {len(missing)} of {len(ids)} clips, expected one each under its path without the suffix")
        raise MusiccmError(f"{captions_from}: {missing[0]}: {why}")
    return texts


def common_rate_hz(folders: Iterable[AudioFolder]) -> int:
    """The highest rate that a clip has, so that resampling takes nothing away; 48 kHz at most."""
    return min(MOST_RATE_HZ, max(rate for folder in folders for rate in folder.rates_hz))


def rendered(item: Item, sound: Sound, sample_rate_hz: int, seed: int) -> Tensor:
    """The samples of a sound at the common rate and length, at the level of its file.

    Args:
        item: The item that it is of.
        sound: Whose clip, and in which form.
        sample_rate_hz: The common rate.
        seed: Of the noise that a degraded form has.

    Returns:
        `[S]`, mono; ends that cut a wave are faded.
    """
    waveform_S, rate_hz = read_audio(item.files[sound.system], 0.0, item.duration_s, allow_silent=True)
    samples = max(1, round(item.duration_s * sample_rate_hz))
    waveform_S = resample(waveform_S, rate_hz, sample_rate_hz, "soxr")[:samples]
    waveform_S = torch.nn.functional.pad(waveform_S, (0, samples - len(waveform_S)))
    return faded(degraded(waveform_S, sample_rate_hz, sound.form, seed), sample_rate_hz)


@dataclass(frozen=True)
class Level:
    """Loudness and true peak of a sound before it is levelled."""

    lufs: float
    peak_dbtp: float

    @property
    def highest_lufs(self) -> float:
        """The loudness that it can be amplified to without a peak beyond the ceiling."""
        return self.lufs + CEILING_DBTP - self.peak_dbtp


def measured(waveform_S: Tensor, sample_rate_hz: int) -> Level | None:
    """The level of a sound; None of near silence, which cannot be brought to that of music."""
    lufs = loudness_lufs(waveform_S, sample_rate_hz)
    return None if lufs < NEAR_SILENCE_LUFS else Level(lufs, decibels(true_peak(waveform_S)))


def common_lufs(levels: Sequence[Level]) -> float:
    """The loudness that all sounds of a test get: the house's, or what the one with the highest peaks can have.

    All have exactly this one, by one factor each: a limiter would change some of the sounds that are compared.

    Args:
        levels: Of all sounds.

    Returns:
        LUFS.
    """
    return min(TARGET_LUFS, *(level.highest_lufs for level in levels))
