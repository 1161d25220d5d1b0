"""The metrics that one network's features stand behind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.registry import NETWORK_SCOPES, MetricRow, keys_of, metric_row, metrics_of
from musiccm.metrics.clips import ClipMetric, TooFewClips


class NetworkMetrics(nn.Module):
    """The registry's metrics over the features of one network: of its embeddings, and for a classifier of its logits.

    An inception score of fewer than two clips a split is left out: it would say nothing.

    Args:
        name: The network's, which the keys of its metrics hold.
        classifies: Whether it gives logits.
        metrics: Names of the metrics; those that need logits are left out where there are none.
        options: Arguments of metrics by their name.
    """

    def __init__(
        self, name: str, classifies: bool, metrics: Collection[str],
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.metrics = nn.ModuleDict({
            row.name: row.make(reset_real_features=False, **(options or {}).get(row.name, {}))
            for row in metrics_of(*NETWORK_SCOPES)
            if row.name in metrics and row.make is not None and (classifies or row.needs != "logits")
        })

    def update(self, features: Embeddings, ids: Sequence[str], real: bool, paired: bool = True) -> None:
        """Add clips.

        Args:
            features: The network's, of these clips.
            ids: Clip ids.
            real: Whether they are the reference.
            paired: Whether each has a partner of its id on the other side; metrics of pairs leave out those without.
        """
        self.update_sets(features, ids, real)
        for row, metric in self._rows("generated", "pairs"):
            if row.scope == "pairs" and paired:
                metric.update(*self._given(row, features, ids, real=real))
            elif row.scope == "generated" and not real:
                metric.update(*self._given(row, features, ids))

    def update_sets(self, features: Embeddings, ids: Sequence[str], real: bool) -> None:
        """Add clips to what compares the two sets, and not to what looks at single clips.

        Args:
            features: The network's, of these clips.
            ids: Clip ids.
            real: Whether they are the reference.
        """
        for row, metric in self._rows("sets"):
            metric.update(*self._given(row, features, ids, real=real))

    def reset(self) -> None:
        """Forget the generated clips, keep the reference."""
        for metric in self.metrics.values():
            metric.reset()

    def distances(self, n: int) -> dict[str, Any]:
        """What compares the two sets.

        Args:
            n: Generated clips.

        Returns:
            The columns of each metric, such as `fd_<name>`; None, with a warning, where the clips are too few.
            `rows_<name>` feature rows and `n_reference` real clips, where they are not n.
        """
        row: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for metric_of, metric in self._rows("sets"):
            found = computed(f"{metric_of.name}_{self.name}", metric)
            row |= {key: found.get(value) for key, value in keys_of(metric_of, self.name).items()}
            named = {"rows": f"rows_{self.name}", "n_real": "n_reference"}
            counts |= {key: found[value] for value, key in named.items() if value in found}
        return row | {key: count for key, count in counts.items() if count != n}

    def compute(self, n: int) -> dict[str, Any]:
        """All metrics.

        Args:
            n: Generated clips.

        Returns:
            Those of `distances`, and the columns of those of single clips and of pairs; `n_<metric>_<name>` clips or
            pairs where they are not n. None, with a warning, where the clips are too few.
        """
        row = self.distances(n)
        for metric_of, metric in self._rows("generated", "pairs"):
            found = computed(f"{metric_of.name}_{self.name}", metric)
            row |= {key: found.get(value) for key, value in keys_of(metric_of, self.name).items()}
            row |= {f"n_{metric_of.name}_{self.name}": found["n"]} if found.get("n", n) != n else {}
        return row

    def _rows(self, *scopes: str) -> list[tuple[MetricRow, Any]]:
        found = [(metric_row(name), metric) for name, metric in self.metrics.items()]
        return [(row, metric) for row, metric in found if row.scope in scopes]

    def _given(
        self, row: MetricRow, features: Embeddings, ids: Sequence[str], real: bool | None = None
    ) -> tuple[Tensor | Sequence[str] | Sequence[int] | bool, ...]:
        """What a metric's `update` takes: rows or logits, ids, the side where it has two, and the rows of each clip."""
        side = () if real is None else (real,)
        if row.needs == "logits":
            if features.logits_BG is None:
                raise MusiccmError(f"embedder {self.name}: expected logits for {row.name.upper()}, found none")
            return features.logits_BG, ids, *side
        return features.embedding_RE, ids, *side, features.counts


def computed(name: str, metric: ClipMetric) -> dict[str, Any]:
    """What a metric comes to, or nothing where there are too few clips.

    Args:
        name: Of the metric, for the warning.
        metric: The metric.

    Returns:
        Its result; empty, with a warning, where there are too few clips.
    """
    try:
        return metric.compute()
    except TooFewClips as error:
        metric.caution("%s left out: %s", name, error)
        return {}
