"""SIM_AA: how many generated clips are close to one of the training clips (MusicLDM, arXiv 2308.01546, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows
from musiccm.similarity.gallery import Gallery, RowGallery
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.nearest import Queries, nearest_clips

THRESHOLDS = (0.90, 0.95)


class Match(NamedTuple):
    """The training clip nearest to a generated one, their cosine, and where the training clip's window begins."""

    clip_id: str
    nearest_id: str
    cosine: float
    nearest_start_s: float | None = None


def share_above(maxima_N: Tensor, threshold: float) -> float:
    """Share of clips whose highest cosine is strictly above a threshold.

    Args:
        maxima_N: Highest cosine of each clip, `[N]`, float64.
        threshold: The threshold.

    Returns:
        A share in [0, 1].
    """
    return float((maxima_N > threshold).double().mean())


def rates(maxima_N: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """SIM_AA at each threshold.

    Args:
        maxima_N: Highest cosine of each clip, `[N]`, float64.
        thresholds: Cosines that must be exceeded.

    Returns:
        Shares by name: `sim_aa_90`, `sim_aa_95`.
    """
    return {f"sim_aa_{round(100 * threshold)}": share_above(maxima_N, threshold) for threshold in thresholds}


class SimAA(ClipMetric):
    """Share of generated clips whose highest CLAP audio cosine with any training clip passes a threshold.

    Exact over all training windows (`musiccm.similarity.nearest`). The search runs in `compute`, once over all clips;
    under distributed evaluation each rank searches its share of the training set, and all get one process's metrics.
    """

    higher_is_better = False

    def __init__(
        self,
        train_audio_ND: Tensor | Gallery,
        train_ids: Sequence[str] = (),
        thresholds: Sequence[float] = THRESHOLDS,
        block: int = 8192,
        **kwargs: Any,
    ) -> None:
        """Take the training set.

        Args:
            train_audio_ND: CLAP audio embeddings of every training clip, `[N, D]`; a clip may have several windows, one
                row each under the same id. Or a gallery that holds them, such as a `TrainingIndex`.
            train_ids: Clip id of each row; not with a gallery, which has its own.
            thresholds: Cosines that must be exceeded.
            block: Training rows compared at a time.
            **kwargs: Passed to `torchmetrics.Metric`.

        Raises:
            MusiccmError: No training row, or rows and ids that do not match.
        """
        super().__init__(**kwargs)
        own = isinstance(train_audio_ND, Gallery)
        self.gallery = train_audio_ND if isinstance(train_audio_ND, Gallery) else RowGallery(train_audio_ND, train_ids)
        if own and len(train_ids):
            raise MusiccmError("SIM_AA: expected no train_ids beside a gallery, which has its own")
        self.thresholds = tuple(thresholds)
        self.block = block
        self.add_ids("ids")
        self.add_rows("audio", 2, torch.float32)
        self.add_rows("windows", 1, torch.long)

    @classmethod
    def from_index(cls, index: str | Path | TrainingIndex, clap: str | None = None, **kwargs: Any) -> SimAA:
        """Compare with an index that `musiccm prepare index` wrote.

        Args:
            index: The index or its folder.
            clap: Fingerprint of the CLAP that will embed the generated clips; None leaves it unchecked.
            **kwargs: Passed to `SimAA`.

        Returns:
            The metric.

        Raises:
            MusiccmError: The index is missing, unfinished, damaged, or was built with another CLAP.
        """
        opened = index if isinstance(index, TrainingIndex) else TrainingIndex(index)
        if clap is not None:
            opened.refuse_other_clap(clap)
        return cls(opened, **kwargs)

    def update(self, audio: Tensor, ids: Sequence[str]) -> None:
        """Add generated clips.

        Args:
            audio: CLAP audio embeddings `[B, D]`, or of several windows a clip `[B, W, D]` (the best window counts).
            ids: Clip ids, `B` of them.

        Raises:
            MusiccmError: Another width than the training set's, or rows that are not finite.
        """
        require_rows("CLAP audio embeddings", audio, ids)
        self.gallery.refuse_width(audio.shape[-1])
        kept = audio.detach()[self.take_new("ids", ids)].float().to(self.device)
        windows = kept.shape[1] if kept.ndim == 3 else 1
        self.audio.append(kept.reshape(-1, kept.shape[-1]))
        self.windows.append(torch.full((len(kept),), windows, dtype=torch.long, device=self.device))

    def compute(self) -> dict[str, Any]:
        """The shares, and what each clip is closest to.

        Returns:
            `sim_aa_90`, `sim_aa_95` (named after the thresholds), `n` and `n_train` clips, `matches` (nearest first).

        Raises:
            MusiccmError: No clip.
        """
        ids, where = self.unique("ids")
        if not ids:
            raise MusiccmError("SIM_AA: expected generated clips, found none")
        counts = self.joined("windows").cpu().numpy()
        first = np.concatenate([[0], np.cumsum(counts)])
        chosen = where.cpu().numpy()
        rows = torch.cat([self.joined("audio")[first[i] : first[i + 1]] for i in chosen])
        # After a gather every rank holds the same clips, and compute runs on all of them.
        found = nearest_clips(self.gallery, Queries(rows, counts[chosen].tolist()), 1, self._is_synced, self.block)
        cosine, gallery = found.cosine_QK[:, 0], self.gallery
        matches = [
            Match(clip_id, gallery.ids[clip], value, gallery.start_s(row))
            for clip_id, clip, value, row in zip(
                ids, found.clip_QK[:, 0].tolist(), cosine.tolist(), found.row_QK[:, 0].tolist(), strict=True)
        ]
        matches.sort(key=lambda match: (-match.cosine, match.clip_id))
        return {**rates(cosine, self.thresholds), "n": len(ids), "n_train": gallery.n_clips, "matches": matches}
