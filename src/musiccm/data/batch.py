"""What the loaders hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from musiccm.diffusion import AnyCondition, Condition

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass
class Batch:
    """Moves the tensors and conditions among its fields together."""

    def _map(self: AnyBatch, function: Callable[[Any], Any]) -> AnyBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor | Condition)})

    def to(self: AnyBatch, *args, **kwargs) -> AnyBatch:
        """The same batch on another device; takes what `Tensor.to` takes."""
        return self._map(lambda field: field.to(*args, **kwargs))

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same batch in page-locked memory."""
        return self._map(lambda field: field.pin_memory())


@dataclass
class WaveformBatch(Batch):
    """Windows with their words.

    Args:
        waveform_BS: Levelled windows, float32, shape [B, S].
        tags_BG: Multi-hot tags, shape [B, G]; G is 0 without a vocabulary.
        ids: Clip ids.
        captions: One caption a clip.
        attributes: What is known for certain of each clip.
        start_s: Where in the track each window begins, in seconds.
    """

    waveform_BS: Tensor
    tags_BG: Tensor
    ids: list[str]
    captions: list[str]
    attributes: list[dict[str, str]] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class LatentBatch(Batch):
    """Encoded windows with their conditions.

    Args:
        latents_BCTF: Raw (un-normalised) latents, sampled from the VAE's moments; in evaluation their mean.
        text_BD: Condition of the caption: its CLAP embedding, or its tokens.
        audio_BD: CLAP embedding of the window's own audio; None where the bundle conditions by tokens.
        ids: Window ids: the clip's, with `@<n>` behind it where a clip has several windows.
        captions: One caption a clip.
        semantic_BL: The windows' semantic tokens, int64; None without a cache of them. A system makes a condition of
            them by its tokenizer's `vectors`.
    """

    latents_BCTF: Tensor
    text_BD: AnyCondition
    audio_BD: Tensor | None
    ids: list[str]
    captions: list[str]
    semantic_BL: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class TokenBatch(Batch):
    """Semantic tokens of windows with both embeddings of the joint space.

    Args:
        semantic_BL: Tokens, int64.
        text_BD: CLAP embedding of the caption.
        audio_BD: CLAP embedding of the window's own audio.
        ids: Window ids.
        captions: One caption a clip.
    """

    semantic_BL: Tensor
    text_BD: Tensor
    audio_BD: Tensor
    ids: list[str]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(kw_only=True)
class TrajectoryBatch(LatentBatch):
    """Paths of a guided teacher; the latents are their ends, and the captions those that guided them.

    Args:
        points_BPCTF: Points of each path as the U-Net sees them, from pure noise on, [B, P, C, T, F].
        timesteps_P: Their timesteps, descending.
    """

    points_BPCTF: Tensor
    timesteps_P: Tensor
