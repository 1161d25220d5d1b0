"""Frechet distance as a metric: streaming, exact under sharding, each clip counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, decode_ids, rows_each
from musiccm.metrics.gaussian import Method, Moments, frechet_distance, merge, moments_of


class FrechetDistance(ClipMetric):
    """Frechet distance between the Gaussians of real and generated features (SPEC 8).

    The newest rows are kept with their clip ids; older ones are folded into (n, mean, M2). So memory is bounded, the
    cheap small-n route stays open, and the repeats that a distributed sampler adds at the end can still be dropped.
    """

    higher_is_better = False

    def __init__(
        self, method: Method = "auto", buffer_rows: int = 8192, reset_real_features: bool = True, **kwargs: Any
    ) -> None:
        """Start without rows.

        Args:
            method: Route to the trace of the root, see `gaussian.frechet_distance`.
            buffer_rows: Rows kept as rows, for each set and rank, before the oldest are folded into moments.
            reset_real_features: Whether `reset` forgets the real set too; false lets one reference serve many models.
            **kwargs: Passed to `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.method = method
        self.buffer_rows = buffer_rows
        self.reset_real_features = reset_real_features
        for side in ("real", "fake"):
            self.add_ids(f"{side}_ids")
            self.add_rows(f"{side}_counts", 1, torch.long)
            self.add_rows(f"{side}_rows", 2, torch.float64)
            self.add_ids(f"{side}_folded_ids")
            self.add_rows(f"{side}_n", 1, torch.long)
            self.add_rows(f"{side}_mean", 2, torch.float64)
            self.add_rows(f"{side}_m2", 3, torch.float64)

    def update(
        self, features: Tensor, ids: Sequence[str], real: bool, counts: Sequence[int] | None = None
    ) -> None:
        """Add clips to one set.

        Args:
            features: Feature rows of all clips, clip after clip, `[R, D]`.
            ids: Clip ids, `B` of them.
            real: Whether they belong to the reference set.
            counts: Rows of each clip (patches, windows), `B` numbers that add up to R; None is one each.

        Raises:
            MusiccmError: Wrong number of axes, counts that differ, or features that are not finite.
        """
        if features.ndim != 2:
            raise MusiccmError(f"Frechet distance: expected [R, D] features, found {list(features.shape)}")
        counts = rows_each("Frechet distance features", features, ids, counts)
        side = "real" if real else "fake"
        keep = set(self.take_new(f"{side}_ids", ids))
        rows = features.detach().double().to(self.device)
        if len(keep) < len(ids):
            rows = torch.cat([part for i, part in enumerate(rows.split(counts)) if i in keep] or [rows[:0]])
        kept = [count for i, count in enumerate(counts) if i in keep]
        getattr(self, f"{side}_counts").append(torch.tensor(kept, dtype=torch.long, device=self.device))
        getattr(self, f"{side}_rows").append(rows)
        self._fold(side)

    def compute(self) -> dict[str, float | int]:
        """The distance and what it rests on.

        Returns:
            `fd`; `n` and `n_real` clips; `rows` and `rows_real` feature rows.

        Raises:
            MusiccmError: Too few rows, or a clip counted in the folded moments of two ranks.
        """
        (n_real, real, rows_real), (n_fake, fake, rows_fake) = self._moments("real"), self._moments("fake")
        value = frechet_distance(real, fake, rows_real, rows_fake, self.method)
        return {"fd": value, "n": n_fake, "n_real": n_real, "rows": fake.n, "rows_real": real.n}

    def reset(self) -> None:
        """Forget the generated set, and the real one unless it is to be kept."""
        if self.reset_real_features:
            super().reset()
            return
        names = [name for name in self._reductions if name.startswith("real_")]
        kept = {name: list(getattr(self, name)) for name in names}  # reset clears the lists themselves
        seen = {name: set(self._seen[name]) for name in names if name in self._seen}
        super().reset()
        for name in names:
            setattr(self, name, kept[name])
        self._seen.update(seen)

    def _fold(self, side: str) -> None:
        ids, counts = getattr(self, f"{side}_ids"), getattr(self, f"{side}_counts")
        rows = getattr(self, f"{side}_rows")
        while len(rows) > 1 and sum(len(chunk) for chunk in rows) > self.buffer_rows:
            oldest, oldest_ids, _ = rows.pop(0), ids.pop(0), counts.pop(0)
            if not len(oldest):
                continue
            state = [getattr(self, f"{side}_{part}") for part in ("n", "mean", "m2")]
            folded = moments_of(oldest)
            if state[0]:
                folded = merge(Moments(int(state[0][0]), state[1][0][0], state[2][0][0]), folded)
            state[0][:] = [torch.tensor([folded.n], device=self.device)]
            state[1][:], state[2][:] = [folded.mean[None]], [folded.m2[None]]
            getattr(self, f"{side}_folded_ids").append(oldest_ids)

    def _moments(self, side: str) -> tuple[int, Moments, Tensor | None]:
        folded_ids = decode_ids(self.joined(f"{side}_folded_ids"))
        if len(set(folded_ids)) != len(folded_ids):
            raise MusiccmError(
                "Frechet distance: a clip was folded into the moments of two ranks and cannot be taken out again; "
                f"raise buffer_rows (now {self.buffer_rows}) or give each clip to one rank"
            )
        ids = decode_ids(self.joined(f"{side}_ids"))
        counts = self.joined(f"{side}_counts").tolist()
        seen = set(folded_ids)
        keep = []
        for clip_id, count in zip(ids, counts, strict=True):
            keep += [clip_id not in seen] * count
            seen.add(clip_id)
        rows = self.joined(f"{side}_rows")[torch.tensor(keep, dtype=torch.bool, device=self.device)] if keep else None
        total = moments_of(rows) if rows is not None and len(rows) else None
        for n, mean, m2 in zip(*(self.joined(f"{side}_{part}") for part in ("n", "mean", "m2")), strict=True):
            part = Moments(int(n), mean, m2)
            total = part if total is None else merge(part, total)
        if total is None:
            raise MusiccmError(f"Frechet distance: expected clips in the {side} set, found none")
        return len(seen), total, None if folded_ids else rows
