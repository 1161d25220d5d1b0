"""The contract of an embedder: waveforms in, rows of features out."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Embeddings(NamedTuple):
    """What one network gives for a batch of clips.

    Args:
        embedding_RE: Feature rows of all clips, clip after clip, float32, `[R, E]`.
        counts: Rows of each clip; one each for networks that give one vector a clip.
        logits_BG: Class logits, one row a clip, float32, `[B, G]`; None for networks that do not classify.
    """

    embedding_RE: Tensor
    counts: list[int]
    logits_BG: Tensor | None = None


class Embedder(nn.Module):
    """A frozen network that metrics are named after: `fd_<name>`, `is_<name>_mean`, `kl_<name>`.

    Attributes:
        name: Such as `pann`, `vgg`, `tagger`.
        sample_rate_hz: What the network takes; waveforms at other rates are resampled to it.
        min_duration_s: Shorter clips are refused.
        fingerprint: Hash of weights and preprocessing, for caches.
    """

    name: str
    sample_rate_hz: int
    min_duration_s: float
    fingerprint: str

    @abstractmethod
    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        """Embed a batch; the front end runs in float32, also under autocast.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate.

        Returns:
            Their features.

        Raises:
            MusiccmError: Clips shorter than `min_duration_s`.
        """
