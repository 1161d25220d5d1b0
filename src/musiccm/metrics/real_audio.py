"""Similarity of a generated clip with the real clip of the same caption, by CLAP (CLAP_A of arXiv 2309.10740)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, TooFewClips, require_rows
from musiccm.metrics.text_audio import clamped_percent, unit_rows


class RealAudioSimilarity(ClipMetric):
    """Mean cosine between the embeddings of generated clips and of the real clips with the same ids."""

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(**kwargs)
        for side in ("real", "fake"):
            self.add_ids(f"{side}_ids")
            self.add_rows(f"{side}_audio", 2, torch.float32)

    def update(self, audio: Tensor, ids: Sequence[str], real: bool) -> None:
        """Add clips to one side.

        Args:
            audio: Audio embeddings, `[B, D]`.
            ids: Clip ids, `B` of them.
            real: Whether they are the reference.
        """
        side = "real" if real else "fake"
        require_rows("audio embeddings", audio, ids)
        keep = self.take_new(f"{side}_ids", ids)
        getattr(self, f"{side}_audio").append(audio.detach()[keep].float().to(self.device))

    def compute(self) -> dict[str, float | int]:
        """The similarity, over the generated clips.

        Returns:
            `ra_similarity`; `clap_a`, the mean of max(cosine, 0) times 100, as ConsistencyTTA states it; `n` pairs.

        Raises:
            TooFewClips: No generated clip.
            MusiccmError: A generated clip without its real one.
        """
        (real_ids, real_rows), (ids, rows) = self.unique("real_ids"), self.unique("fake_ids")
        if not ids:
            raise TooFewClips("similarity with real clips: expected pairs of a real and a generated clip, found none")
        places = {clip_id: place for place, clip_id in enumerate(real_ids)}
        if missing := [clip_id for clip_id in ids if clip_id not in places]:
            raise MusiccmError(
                f"similarity with real clips: expected a real clip for each of {len(ids)} generated ones, found none "
                f"for {len(missing)}, first {missing[:3]}; names must agree on both sides"
            )
        partners = torch.tensor([places[clip_id] for clip_id in ids], device=self.device)
        real = unit_rows(self.joined("real_audio")[real_rows[partners]])
        cosine_N = (real * unit_rows(self.joined("fake_audio")[rows])).sum(dim=1)
        return {"ra_similarity": float(cosine_N.mean()), "clap_a": clamped_percent(cosine_N), "n": len(ids)}
