"""SIM_AA: how many generated clips are close to one of the training clips (MusicLDM, section 4; SPEC 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows
from musiccm.metrics.text_audio import unit_rows


class Match(NamedTuple):
    """The training clip nearest to a generated one, and their cosine."""

    clip_id: str
    nearest_id: str
    cosine: float


def share_above(maxima_N: Tensor, threshold: float) -> float:
    """Share of clips whose highest cosine is strictly above a threshold.

    Args:
        maxima_N: Highest cosine of each clip, `[N]`, float64.
        threshold: The threshold.

    Returns:
        A share in [0, 1].
    """
    return float((maxima_N > threshold).double().mean())


class SimAA(ClipMetric):
    """Share of generated clips whose highest CLAP audio cosine with any training clip passes a threshold.

    Exact: all training rows are compared, block by block, in float64.
    """

    higher_is_better = False

    def __init__(
        self,
        train_audio_ND: Tensor,
        train_ids: Sequence[str],
        thresholds: Sequence[float] = (0.90, 0.95),
        block: int = 8192,
        **kwargs: Any,
    ) -> None:
        """Take the training set.

        Args:
            train_audio_ND: CLAP audio embeddings of every training clip, `[N, D]`; a clip may have several windows, one
                row each under the same id.
            train_ids: Clip id of each row.
            thresholds: Cosines that must be exceeded.
            block: Training rows compared at a time.
            **kwargs: Passed to `torchmetrics.Metric`.

        Raises:
            MusiccmError: No training row, or rows and ids that do not match.
        """
        super().__init__(**kwargs)
        require_rows("training CLAP embeddings", train_audio_ND, train_ids)
        if not len(train_ids):
            raise MusiccmError("SIM_AA: expected training embeddings, found none; encode the training set first")
        self.train_rows = unit_rows(train_audio_ND.detach())
        self.train_ids = list(train_ids)
        self.thresholds = tuple(thresholds)
        self.block = block
        self.add_ids("ids")
        self.add_rows("cosine", 1, torch.float64)
        self.add_rows("nearest", 1, torch.long)

    def update(self, audio: Tensor, ids: Sequence[str]) -> None:
        """Add generated clips.

        Args:
            audio: CLAP audio embeddings `[B, D]`, or of several windows a clip `[B, W, D]` (the best window counts).
            ids: Clip ids, `B` of them.

        Raises:
            MusiccmError: Another width than the training set's, or rows that are not finite.
        """
        require_rows("CLAP audio embeddings", audio, ids)
        if audio.shape[-1] != self.train_rows.shape[1]:
            raise MusiccmError(
                f"SIM_AA: expected embeddings as wide as the training set's {self.train_rows.shape[1]}, "
                f"found {audio.shape[-1]}; were both embedded by the same CLAP?"
            )
        windows = unit_rows(audio.detach()[self.take_new("ids", ids)])
        windows = windows[:, None] if windows.ndim == 2 else windows
        best = torch.full((len(windows),), -torch.inf, dtype=torch.float64, device=windows.device)
        nearest = torch.zeros(len(windows), dtype=torch.long, device=windows.device)
        for start in range(0, len(self.train_rows), self.block):
            rows = self.train_rows[start : start + self.block].to(windows.device)
            value, where = (windows @ rows.T).amax(dim=1).max(dim=1)
            better = value > best
            best, nearest = torch.where(better, value, best), torch.where(better, where + start, nearest)
        self.cosine.append(best.to(self.device))
        self.nearest.append(nearest.to(self.device))

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
        cosine = self.joined("cosine")[where]
        nearest = self.joined("nearest")[where].tolist()
        matches = [Match(i, self.train_ids[j], c) for i, j, c in zip(ids, nearest, cosine.tolist(), strict=True)]
        shares = {f"sim_aa_{round(100 * threshold)}": share_above(cosine, threshold) for threshold in self.thresholds}
        matches.sort(key=lambda match: (-match.cosine, match.clip_id))
        return {**shares, "n": len(ids), "n_train": len(set(self.train_ids)), "matches": matches}
