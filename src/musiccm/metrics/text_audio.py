"""How well audio answers its text, by the cosine of a joint embedding (MusicLDM, arXiv 2308.01546, table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Rows scaled to length 1, float64.

    Args:
        rows_ND: Embeddings, `[..., D]`.

    Returns:
        Unit embeddings; a zero row stays zero, so its cosine with anything is 0.
    """
    rows = rows_ND.double()
    length = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, torch.ones_like(length))


def clamped_percent(cosine_N: Tensor) -> float:
    """Mean of max(cosine, 0), times 100: the CLAP score as ConsistencyTTA and others print it."""
    return 100.0 * float(cosine_N.clamp(min=0).mean())


class TextAudioSimilarity(ClipMetric):
    """Mean cosine between the text a clip was asked for with and the clip."""

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            **kwargs: Passed to `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.add_ids("ids")
        self.add_rows("text", 2, torch.float32)
        self.add_rows("audio", 2, torch.float32)

    def update(self, text: Tensor, audio: Tensor, ids: Sequence[str]) -> None:
        """Add pairs.

        Args:
            text: Text embeddings, `[B, D]`.
            audio: Audio embeddings, `[B, D]`.
            ids: Clip ids, `B` of them.
        """
        require_rows("text embeddings", text, ids)
        require_rows("audio embeddings", audio, ids)
        keep = self.take_new("ids", ids)
        self.text.append(text.detach()[keep].float().to(self.device))
        self.audio.append(audio.detach()[keep].float().to(self.device))

    def compute(self) -> dict[str, float | int]:
        """The similarity.

        Returns:
            `ta_similarity`; `clap_t`, the mean of max(cosine, 0) times 100; `n` clips. Fed with the test set's own
            audio this is the Test Set reference.

        Raises:
            MusiccmError: No clip.
        """
        text, audio, n = self._pairs()
        cosine_N = (text * audio).sum(dim=1)
        return {"ta_similarity": float(cosine_N.mean()), "clap_t": clamped_percent(cosine_N), "n": n}

    def retrieval_max(self, gallery_ND: Tensor, block: int = 8192) -> dict[str, float | int]:
        """The Retrieval Max reference: for each text, the best cosine with any clip of a gallery, averaged.

        Call it on every rank; under distributed evaluation it gathers as `compute` does.

        Args:
            gallery_ND: Audio embeddings to choose from, `[N, D]`.
            block: Gallery rows taken at a time.

        Returns:
            `retrieval_max_ta`; `n` texts; `n_gallery` rows.
        """
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            text, _, n = self._pairs()
        best = torch.full((n,), -torch.inf, dtype=torch.float64, device=text.device)
        for rows in gallery_ND.split(block):
            best = torch.maximum(best, (text @ unit_rows(rows.to(text.device)).T).amax(dim=1))
        return {"retrieval_max_ta": float(best.mean()), "n": n, "n_gallery": len(gallery_ND)}

    def _pairs(self) -> tuple[Tensor, Tensor, int]:
        ids, where = self.unique("ids")
        if not ids:
            raise MusiccmError("text-audio similarity: expected clips, found none")
        return unit_rows(self.joined("text")[where]), unit_rows(self.joined("audio")[where]), len(ids)
