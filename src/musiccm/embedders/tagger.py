"""The bundle's own tagger as an embedder: it stands where PANN stands for large models."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import FrozenEmbedder, batches
from musiccm.models.tagger import Tagger

FRAMES_PER_PASS = 32768


class TaggerEmbedder(FrozenEmbedder):
    """A `Tagger` behind its mel: one row a clip of any length, and logits of its tags.

    Args:
        tagger: The network.
        mel: The front end that it was trained on.

    Attributes:
        tags: Names of the logits; `group:value` where they state an attribute.
        groups: Group name to logit columns.
    """

    def __init__(self, tagger: Tagger, mel: MelConfig) -> None:
        # One sample more than half a transform is what the mel's reflect padding needs.
        super().__init__("tagger", mel.sample_rate_hz, max(mel.n_fft // 2 + 1, mel.hop_length))
        self.network, self.log_mel = tagger.float(), LogMel(mel)
        self.tags, self.groups = list(tagger.tags), dict(tagger.groups)
        self.freeze(tagger, mel=vars(mel), tagger=vars(tagger.config))

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip."""
        frames = waveform_BS.shape[-1] // self.log_mel.config.hop_length
        rows = [self.network(self.log_mel(waveform_BS[part]))
                for part in batches(len(waveform_BS), frames, FRAMES_PER_PASS)]
        embedding, logits = (torch.cat(column) for column in zip(*rows, strict=True))
        return Embeddings(embedding, [1] * len(embedding), logits)
