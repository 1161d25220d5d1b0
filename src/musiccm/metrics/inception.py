"""Inception score: are single clips decided, and is the set varied?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows

# The seed with which the published toolkits shuffle clips before they split them.
REFERENCE_SEED = 2020


def split_scores(logits_NC: Tensor, splits: int) -> Tensor:
    """`exp mean_i KL(p_i || p_bar)` of each of `splits` contiguous parts (SPEC 8), softmax, float64.

    Args:
        logits_NC: Class logits, `[N, C]`.
        splits: Number of parts, at most N.

    Returns:
        One score a part, `[splits]`.
    """
    n = logits_NC.shape[0]
    log_p = logits_NC.double().log_softmax(dim=1)
    scores = []
    for part in range(splits):
        chunk = log_p[part * n // splits : (part + 1) * n // splits]
        p = chunk.exp()
        terms = p * (chunk - p.mean(dim=0, keepdim=True).log())
        # A class that no clip of the part has at all is 0 * inf here, and 0 in the limit.
        scores.append(terms.where(p > 0, 0.0).sum(dim=1).mean().exp())
    return torch.stack(scores)


class InceptionScore(ClipMetric):
    """Inception score over clips in the order of their ids, then shuffled as audioldm_eval does, then split.

    Sorting first makes the splits, and so the figure, the same for every batching, order and number of ranks.
    """

    higher_is_better = True

    def __init__(self, splits: int = 10, shuffle_seed: int | None = REFERENCE_SEED, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            splits: Number of parts that are scored alone.
            shuffle_seed: Seed of the `RandomState` permutation of the sorted clips; None leaves them sorted.
            **kwargs: Passed to `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.splits = splits
        self.shuffle_seed = shuffle_seed
        self.add_ids("ids")
        self.add_rows("logits", 2, torch.float32)

    def update(self, logits: Tensor, ids: Sequence[str]) -> None:
        """Add generated clips.

        Args:
            logits: Class logits, `[B, C]`.
            ids: Clip ids, `B` of them.
        """
        require_rows("inception score logits", logits, ids)
        self.logits.append(logits.detach()[self.take_new("ids", ids)].float().to(self.device))

    def compute(self) -> dict[str, float | int]:
        """The score.

        Returns:
            `is_mean`; `is_std`, the population deviation over splits; `n` clips.

        Raises:
            MusiccmError: Fewer clips than splits.
        """
        ids, where = self.unique("ids")
        if len(ids) < self.splits:
            raise MusiccmError(
                f"inception score: expected at least one clip a split ({self.splits}), found {len(ids)} clips"
            )
        logits = self.joined("logits")[where]
        if self.shuffle_seed is not None:
            order = np.random.RandomState(self.shuffle_seed).permutation(len(ids))
            logits = logits[torch.as_tensor(order, device=logits.device)]
        scores = split_scores(logits, self.splits)
        return {"is_mean": float(scores.mean()), "is_std": float(scores.std(unbiased=False)), "n": len(ids)}
