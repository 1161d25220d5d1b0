"""Parts of a clip, and what a tagger finds in each: windows away from the borders, cut to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from musiccm.models.tagger import Tagger

#: Where the sections of a clip of so many are read, in shares of its length: borders lie on beats, near equal parts.
WINDOWS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.01, 0.99),),
    2: ((0.01, 0.42), (0.58, 0.99)),
    3: ((0.01, 0.265), (0.40, 0.595), (0.74, 0.99)),
}
#: All of them, as (sections, place).
PLACES = tuple((sections, place) for sections, windows in WINDOWS.items() for place in range(len(windows)))
#: What is told apart in a section.
GROUPS = ("instrument", "drums")
#: Frames of a window as the tagger sees it: 2.08 s at 10 ms.
WINDOW_FRAMES = 208
#: Below a window's peak by this much, in the log mel's own units, is silence: 35 dB.
SILENCE = 4.0


def section_window(mel_BMN: Tensor, sections: int, place: int) -> Tensor:
    """One section of clips, as a tagger of sections is trained on it and asked about it.

    Args:
        mel_BMN: Natural-log mels of whole clips.
        sections: How many parts a clip has.
        place: Which, from 0.

    Returns:
        Mels of `WINDOW_FRAMES`.
    """
    start, end = WINDOWS[sections][place]
    total = mel_BMN.shape[1]
    return sounding(mel_BMN[:, round(start * total): max(round(end * total), round(start * total) + 1)], WINDOW_FRAMES)


def sounding(mel_BMN: Tensor, frames: int) -> Tensor:
    """Windows without the silence before and behind what sounds, which is repeated to fill them, or cut.

    A tagger takes averages over time, and two strokes in two seconds are mostly silence.

    Args:
        mel_BMN: Natural-log mels.
        frames: How many to return.

    Returns:
        Mels [B, frames, N].
    """
    level_BM = mel_BMN.amax(dim=2)
    loud_BM = level_BM > level_BM.amax(dim=1, keepdim=True) - SILENCE
    places = torch.arange(mel_BMN.shape[1], device=mel_BMN.device)
    first_B = torch.where(loud_BM, places, len(places)).amin(dim=1)
    last_B = torch.where(loud_BM, places, -1).amax(dim=1)
    length_B = (last_B - first_B + 1).clamp(min=1)
    repeated_BM = first_B[:, None] + torch.arange(frames, device=mel_BMN.device) % length_B[:, None]
    return mel_BMN.gather(1, repeated_BM[..., None].expand(-1, -1, mel_BMN.shape[2]))


def values_of(tagger: Tagger) -> dict[str, list[str]]:
    """What a tagger tells apart in each of `GROUPS`, in the order of its columns; groups that it lacks are left out."""
    return {group: [tagger.tags[column].split(":", 1)[1] for column in tagger.groups[group]]
            for group in GROUPS if group in tagger.groups}


def told_sections(labels: Mapping[str, str]) -> list[str] | None:
    """What sounds in each part of a clip, by its labels; None where they do not say.

    Args:
        labels: `order`, such as `flute > flute + rock drums`; for clips that do not change `sounds` and `form`.
    """
    whole = labels.get("sounds") if labels.get("form") in ("alone", "together") else None
    told = labels.get("order", whole)
    return None if told is None else told.split(" > ")


def told_values(section: str, values: Mapping[str, Sequence[str]]) -> list[int]:
    """Places of what sounds in a section among the values of each group; -1 for the instrument of drums alone.

    Args:
        section: Such as `flute + rock drums`.
        values: Of `values_of`.

    Returns:
        One number a group, in the order of `GROUPS`.
    """
    names = section.split(" + ")
    drums = [name.removesuffix(" drums") for name in names if name.endswith(" drums")]
    instruments = [name for name in names if not name.endswith(" drums")]
    found = {"drums": drums[0] if drums else "none", "instrument": instruments[0] if instruments else None}
    return [-1 if (value := found[group]) is None else list(values[group]).index(value) for group in GROUPS]
