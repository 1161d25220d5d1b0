"""audioldm_eval's own functions on features that were taken already: the second column beside our metrics."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError
from musiccm.metrics.inception import REFERENCE_SEED


@dataclass
class FeatureSet:
    """What one network gives for a set of clips, clip by clip.

    Args:
        rows: Clip id to its embedding rows, `[R, E]`.
        logits: Clip id to its class logits, `[G]`; empty for a network that does not classify.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)

    def add(self, ids: Sequence[str], embedded: Embeddings) -> None:
        """Add a batch."""
        self.rows |= dict(zip(ids, embedded.embedding_RE.cpu().split(embedded.counts), strict=True))
        if embedded.logits_BG is not None:
            self.logits |= dict(zip(ids, embedded.logits_BG.cpu(), strict=True))

    def as_reference(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What audioldm_eval calls a featuresdict, its clips in the order of their names.

        Args:
            names: Take these clips only.
        """
        order = sorted(self.rows if names is None else names)
        features: dict[str, Any] = {"2048": torch.cat([self.rows[name] for name in order]), "file_path_": order}
        if self.logits:
            features["logits"] = torch.stack([self.logits[name] for name in order])
        return features


def reference_metrics(generated: FeatureSet, real: FeatureSet, splits: int = 10) -> dict[str, float]:
    """FD, and for a classifier IS and KL, by audioldm_eval 0.0.3.

    Args:
        generated: Features of the generated clips.
        real: Of the references.
        splits: Splits of the inception score.

    Returns:
        `fd`, `is_mean`, `is_std` and, where names agree on both sides, `kl` (softmax form).

    Raises:
        MusiccmError: audioldm_eval is not installed, or its square root of the covariances has an imaginary part.
    """
    try:
        from audioldm_eval import calculate_fid, calculate_isc, calculate_kl
    except ImportError as error:
        raise MusiccmError(f"reference_implementation: needs audioldm_eval 0.0.3 ({error}); `make setup` installs it, "
                           "a plain pip cannot") from error
    fake, true = generated.as_reference(), real.as_reference()
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        try:
            metrics = {"fd": calculate_fid(fake, true, "2048")["frechet_distance"]}
        except AssertionError as error:
            raise MusiccmError(f"audioldm_eval's calculate_fid gave up: {error}") from error
        if not generated.logits:
            return metrics
        if len(generated.logits) >= 2 * splits:  # below that ours is left out, too
            found = calculate_isc(fake, "logits", REFERENCE_SEED, True, splits)
            metrics |= {"is_mean": found["inception_score_mean"], "is_std": found["inception_score_std"]}
        if paired := sorted(set(generated.logits) & set(real.logits)):
            kl = calculate_kl(generated.as_reference(paired), real.as_reference(paired), "logits")[0]
            metrics["kl"] = kl["kullback_leibler_divergence_softmax"]
    return metrics
