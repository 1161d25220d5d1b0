"""Inception score: are single clips decided, and is the set varied?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.folding import FoldingMetric, Summary

# The seed with which the published toolkits shuffle clips before they split them.
REFERENCE_SEED = 2020
# A split of n clips cannot score above n, and scores low long before.
FEW_A_SPLIT = 50

Splitting = Literal["seeded", "hashed"]


def split_scores(logits_NC: Tensor, splits: int) -> Tensor:
    """`exp mean_i KL(p_i || p_bar)` of each of `splits` contiguous parts (arXiv 1606.03498, section 4),
    softmax, float64.

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


def split_of(clip_id: str, splits: int) -> int:
    """The part that a clip belongs to by its id alone.

    Args:
        clip_id: The id.
        splits: Number of parts.

    Returns:
        A number below `splits`.
    """
    return int.from_bytes(hashlib.blake2b(clip_id.encode(), digest_size=8).digest(), "little") % splits


class InceptionScore(FoldingMetric):
    """Inception score of the clips' class probabilities.

    `seeded` is the form of audioldm_eval: clips sorted by id, then shuffled by a fixed seed, then cut into equal parts;
    sorting makes it the same for every batching and number of ranks. It needs all logits. `hashed` assigns clips to
    parts by a hash of their id, and so needs only running sums: `ln IS = mean_i sum_c p ln p - sum_c p_bar ln p_bar`
    within a part. Its parts are of unequal size, and its values differ from the published form's as another seed's
    would.
    """

    higher_is_better = True

    def __init__(
        self,
        splits: int = 10,
        splitting: Splitting = "seeded",
        shuffle_seed: int | None = REFERENCE_SEED,
        sort_key: Callable[[str], Any] | None = None,
        clips_a_split: int = 1,
        buffer_rows: int = 4096,
        **kwargs: Any,
    ) -> None:
        """Start without clips.

        Args:
            splits: Number of parts that are scored alone.
            splitting: `seeded` or `hashed`.
            shuffle_seed: Seed of the `RandomState` permutation of the sorted clips; None leaves them sorted.
            sort_key: What `seeded` sorts the ids by. audioldm_eval sorts file names with their suffix, which puts
                `a-b.wav` before `a.wav`: where ids are stems, `lambda clip_id: clip_id + ".wav"` gives its order.
            clips_a_split: Fewer clips a part than this, on average, are refused; a part of one scores 1 whatever it is.
            buffer_rows: See `FoldingMetric`; `seeded` folds nothing.
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(buffer_rows if splitting == "hashed" else None, torch.float32, **kwargs)
        self.splits, self.splitting, self.clips_a_split = splits, splitting, clips_a_split
        self.shuffle_seed, self.sort_key = shuffle_seed, sort_key
        self.add_side("fake", counts_K=1, p_log_p_K=1, p_KC=2)

    def update(self, logits: Tensor, ids: Sequence[str]) -> None:
        """Add generated clips.

        Args:
            logits: Class logits, `[B, C]`.
            ids: Clip ids, `B` of them.
        """
        self.add_clips("fake", "inception score logits", logits, ids)

    def fold(self, summary: Summary | None, rows: Tensor, ids: Sequence[str], counts: Sequence[int]) -> Summary:
        """Add clips to the sums of their parts.

        Args:
            summary: Clips, sums of `p ln p` and of p, by part; None at first.
            rows: Logits, `[R, C]`.
            ids: Clip ids.
            counts: Rows of each, all 1.

        Returns:
            The new sums.
        """
        log_p = rows.double().log_softmax(dim=1)
        p = log_p.exp()
        part = torch.tensor([split_of(clip_id, self.splits) for clip_id in ids], device=rows.device)
        entropy = (p * log_p).where(p > 0, 0.0).sum(dim=1)
        sums = tuple(
            values.new_zeros(self.splits, *values.shape[1:]).index_add_(0, part, values)
            for values in (torch.ones_like(entropy), entropy, p)
        )
        return sums if summary is None else tuple(old + new for old, new in zip(summary, sums, strict=True))

    def compute(self) -> dict[str, float | int]:
        """The score; few clips a part are warned about.

        Returns:
            `is_mean`; `is_std`, the population deviation over parts; `n` clips.

        Raises:
            TooFewClips: Fewer clips than parts need, or a part without a clip.
        """
        found = self.collected("fake")
        if found.n < self.clips_a_split * self.splits or not found.n:
            raise TooFewClips(
                f"inception score: expected at least {self.clips_a_split} clips in each of {self.splits} splits, found "
                f"{found.n} clips"
            )
        if found.n < FEW_A_SPLIT * self.splits:
            self.caution(
                "inception score: %d clips in %d splits give a figure that is biased downwards; compare it only with "
                "figures of the same numbers", found.n, self.splits,
            )
        if self.splitting == "seeded":
            key = self.sort_key or (lambda clip_id: clip_id)
            order = sorted(range(found.n), key=lambda i: key(found.ids[i]))
            if self.shuffle_seed is not None:
                order = [order[i] for i in np.random.RandomState(self.shuffle_seed).permutation(found.n)]
            scores = split_scores(found.rows[torch.tensor(order, device=found.rows.device)], self.splits)
        else:
            summaries = found.summaries
            if found.ids:
                summaries = [*summaries, self.fold(None, found.rows, found.ids, found.counts)]
            scores = self._hashed_scores(*(torch.stack(parts).sum(dim=0) for parts in zip(*summaries, strict=True)))
        return {"is_mean": float(scores.mean()), "is_std": float(scores.std(unbiased=False)), "n": found.n}

    def _hashed_scores(self, counts_K: Tensor, p_log_p_K: Tensor, p_KC: Tensor) -> Tensor:
        if not counts_K.all():
            raise TooFewClips(
                f"inception score: expected clips in each of {self.splits} splits, found none in "
                f"{int((counts_K == 0).sum())}; with {int(counts_K.sum())} clips take fewer splits, or 'seeded' ones"
            )
        mean = p_KC / counts_K[:, None]
        return (p_log_p_K / counts_K - torch.special.xlogy(mean, mean).sum(dim=1)).exp()
