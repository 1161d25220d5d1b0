"""The figures that one listening network stands behind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.metrics.embedders.base import Heard
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.inception import InceptionScore
from musiccm.metrics.kl import KLDivergence

log = logging.getLogger(__name__)


class NetworkMetrics(nn.Module):
    """Frechet distance, and for a classifier inception score and KL, of one network.

    Args:
        name: The network's; figures are called `fd_<name>`, `is_<name>_mean`, `is_<name>_std`, `kl_<name>`.
        classifies: Whether it gives logits.
        splits: Splits of the inception score.
    """

    def __init__(self, name: str, classifies: bool = True, splits: int = 10) -> None:
        super().__init__()
        self.name = name
        self.fd = FrechetDistance(reset_real_features=False)
        self.inception = InceptionScore(splits=splits) if classifies else None
        self.kl = KLDivergence(reset_real_features=False) if classifies else None

    def update(self, heard: Heard, ids: Sequence[str], real: bool) -> None:
        """Add clips.

        Args:
            heard: What the network heard of them.
            ids: Clip ids.
            real: Whether they are the reference.
        """
        self.update_rows(heard, ids, real)
        if self.kl is not None and self.inception is not None:
            logits = self._logits(heard)
            self.kl.update(logits, ids, real)
            if not real:
                self.inception.update(logits, ids)

    def update_rows(self, heard: Heard, ids: Sequence[str], real: bool) -> None:
        """Add clips to what compares sets of embeddings, and not to what looks at single clips.

        Args:
            heard: What the network heard of them.
            ids: Clip ids.
            real: Whether they are the reference.
        """
        self.fd.update(heard.embedding_RE, ids, real, heard.counts)

    def reset(self) -> None:
        """Forget the generated clips, keep the reference."""
        for metric in (self.fd, self.inception, self.kl):
            if metric is not None:
                metric.reset()

    def distances(self) -> dict[str, Any]:
        """Figures that compare the two sets of embeddings.

        Returns:
            `fd_<name>`, `n`; where they differ from `n`, `rows_<name>` feature rows and `n_reference` clips.
        """
        found = self.fd.compute()
        row: dict[str, Any] = {f"fd_{self.name}": found["fd"]}
        row |= {f"rows_{self.name}": found["rows"]} if found["rows"] != found["n"] else {}
        row |= {"n_reference": found["n_real"]} if found["n_real"] != found["n"] else {}
        return row | {"n": found["n"]}

    def compute(self) -> dict[str, Any]:
        """All figures.

        Returns:
            Those of `distances`, and for a classifier `is_<name>_mean`, `_std`, `kl_<name>`, `kl_<name>_exact`. The
            inception score is None where there are fewer than two clips a split: it would say nothing.
        """
        row = self.distances()
        n = row.pop("n")
        if self.inception is not None and self.kl is not None:
            score: dict[str, Any] = {"is_mean": None, "is_std": None}
            if n >= 2 * self.inception.splits:
                score = self.inception.compute()
            else:
                log.warning(
                    "inception score left out: %d clips, fewer than 2 in each of %d splits", n, self.inception.splits
                )
            row |= {f"is_{self.name}_mean": score["is_mean"], f"is_{self.name}_std": score["is_std"]}
            kl = self.kl.compute()
            row |= {f"kl_{self.name}": kl["kl"], f"kl_{self.name}_exact": kl["kl_exact"]}
        return row | {"n": n}

    def _logits(self, heard: Heard) -> Tensor:
        if heard.logits_BG is None:
            raise MusiccmError(f"embedder {self.name}: expected logits for IS and KL, found none")
        return heard.logits_BG
