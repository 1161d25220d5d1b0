"""The figures that one listening network stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, TooFewClips
from musiccm.metrics.extrapolated import FrechetInfinity
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.inception import InceptionScore
from musiccm.metrics.kernel import KernelDistance
from musiccm.metrics.kl import KLDivergence


class NetworkMetrics(nn.Module):
    """Frechet distance, and for a classifier inception score and KL, of one network.

    An inception score of fewer than two clips a split is left out: it would say nothing.

    Args:
        name: The network's; figures are called `fd_<name>`, `is_<name>_mean`, `is_<name>_std`, `kl_<name>`.
        classifies: Whether it gives logits.
        splits: Splits of the inception score.
        kad: Whether to add `kad_<name>`, which keeps all rows.
        fd_inf: Whether to add `fd_inf_<name>`, which keeps all rows and takes many distances.
    """

    def __init__(
        self, name: str, classifies: bool = True, splits: int = 10, kad: bool = False, fd_inf: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        keep: dict[str, Any] = {"reset_real_features": False}
        self.fd = FrechetDistance(**keep)
        self.inception = InceptionScore(splits=splits, clips_a_split=2) if classifies else None
        self.kl = KLDivergence(**keep) if classifies else None
        self.kad = KernelDistance(**keep) if kad else None
        self.fd_inf = FrechetInfinity(**keep) if fd_inf else None

    def update(self, heard: Embeddings, ids: Sequence[str], real: bool, paired: bool = True) -> None:
        """Add clips.

        Args:
            heard: What the network heard of them.
            ids: Clip ids.
            real: Whether they are the reference.
            paired: Whether each has a partner of its id on the other side; KL leaves out those without.
        """
        self.update_rows(heard, ids, real)
        if self.kl is not None and self.inception is not None:
            logits = self._logits(heard)
            if paired:
                self.kl.update(logits, ids, real)
            if not real:
                self.inception.update(logits, ids)

    def update_rows(self, heard: Embeddings, ids: Sequence[str], real: bool) -> None:
        """Add clips to what compares sets of embeddings, and not to what looks at single clips.

        Args:
            heard: What the network heard of them.
            ids: Clip ids.
            real: Whether they are the reference.
        """
        for metric in (self.fd, self.kad, self.fd_inf):
            if metric is not None:
                metric.update(heard.embedding_RE, ids, real, heard.counts)

    def reset(self) -> None:
        """Forget the generated clips, keep the reference."""
        for metric in (self.fd, self.inception, self.kl, self.kad, self.fd_inf):
            if metric is not None:
                metric.reset()

    def distances(self, n: int) -> dict[str, Any]:
        """Figures that compare the two sets of embeddings.

        Args:
            n: Generated clips.

        Returns:
            `fd_<name>`, and where asked for `kad_<name>` and `fd_inf_<name>`; None, with a warning, where the clips are
            too few. `rows_<name>` feature rows and `n_reference` real clips, where they are not n.
        """
        row: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for key, metric in {"fd": self.fd, "kad": self.kad, "fd_inf": self.fd_inf}.items():
            if metric is not None:
                found = figures(f"{key}_{self.name}", metric)
                row[f"{key}_{self.name}"] = found.get(key)
                counts |= {f"rows_{self.name}": found["rows"], "n_reference": found["n_real"]} if found else {}
        return row | {key: count for key, count in counts.items() if count != n}

    def compute(self, n: int) -> dict[str, Any]:
        """All figures.

        Args:
            n: Generated clips.

        Returns:
            Those of `distances`, and for a classifier `is_<name>_mean`, `_std`, `kl_<name>`, `kl_<name>_exact`, and
            `n_kl_<name>` pairs where they are not n. None, with a warning, where the clips are too few.
        """
        row = self.distances(n)
        if self.inception is not None and self.kl is not None:
            score, kl = figures(f"is_{self.name}", self.inception), figures(f"kl_{self.name}", self.kl)
            row |= {f"is_{self.name}_mean": score.get("is_mean"), f"is_{self.name}_std": score.get("is_std")}
            row |= {f"kl_{self.name}": kl.get("kl"), f"kl_{self.name}_exact": kl.get("kl_exact")}
            row |= {f"n_kl_{self.name}": kl["n"]} if kl and kl["n"] != n else {}
        return row

    def _logits(self, heard: Embeddings) -> Tensor:
        if heard.logits_BG is None:
            raise MusiccmError(f"embedder {self.name}: expected logits for IS and KL, found none")
        return heard.logits_BG


def figures(name: str, metric: ClipMetric) -> dict[str, Any]:
    """What a metric comes to, or nothing where there are too few clips.

    Args:
        name: Of the figure, for the warning.
        metric: The metric.

    Returns:
        Its result; empty, with a warning, where there are too few clips.
    """
    try:
        return metric.compute()
    except TooFewClips as error:
        metric.caution("%s left out: %s", name, error)
        return {}
