"""What a model without a fault would come to: real clips that are not the reference, through the same decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from musiccm.data.batch import WaveformBatch
from musiccm.evaluation.evaluator import further_id

#: What the floor is, as results and tables call it.
SAME_CAPTIONS, OTHER_CLIPS = "other renderings of the same captions", "other real clips"


@dataclass(frozen=True)
class FloorClips:
    """The clips of a floor.

    Args:
        clips: Windows as `WaveformWindows` gives them.
        again: Further renderings of the same clips, for the spread of real music under one caption; None without.
        kind: `SAME_CAPTIONS` or `OTHER_CLIPS`.
        key: What decides their sound beside ids and captions; empty where they are not to be kept.
    """

    clips: Dataset
    kind: str
    again: Dataset | None = None
    key: Mapping[str, Any] = field(default_factory=dict)


def floor_clips(data: Any, split: str, limit: int, count: int) -> FloorClips | None:
    """The best floor that a data module has.

    Other renderings of the very captions that the models answer share their mixture of instruments, as a model does;
    other real clips of other captions do not, and lie further off.

    Args:
        data: The data module; one with `other_renderings(split, limit)` may have the former.
        split: What is evaluated on.
        limit: At most so many clips of it.
        count: As many clips as there are of it.

    Returns:
        The clips, as many; None where the data module has not enough.
    """
    rendered = data.other_renderings(split, limit) if hasattr(data, "other_renderings") else None
    if rendered is not None:
        return FloorClips(rendered, SAME_CAPTIONS, data.other_renderings(split, limit, 2), rendered.key)
    # A bare index is the centred window, in the training clips too.
    others: ConcatDataset = ConcatDataset([data.waveforms("val"), data.waveforms("train")])
    return FloorClips(others, OTHER_CLIPS) if len(others) >= count else None


def renamed(batch: WaveformBatch, number: int) -> WaveformBatch:
    """A batch of further renderings, under ids of their own."""
    return replace(batch, ids=[further_id(clip_id, number) for clip_id in batch.ids])
