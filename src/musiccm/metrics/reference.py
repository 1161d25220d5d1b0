"""audioldm_eval's own functions on features that were taken already: the second column beside our figures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.inception import REFERENCE_SEED


@dataclass
class FeatureSet:
    """Features of a set of clips, one row a clip, as the reference implementation takes them.

    Args:
        ids: Clip ids.
        embedding: Rows of each batch.
        logits: Class logits of each batch.
    """

    ids: list[str] = field(default_factory=list)
    embedding: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, ids: Sequence[str], embedding_BE: Tensor, logits_BG: Tensor) -> None:
        """Add a batch."""
        self.ids += ids
        self.embedding.append(embedding_BE.cpu())
        self.logits.append(logits_BG.cpu())

    def as_reference(self, names: Sequence[str] | None = None) -> dict[str, Tensor | list[str]]:
        """What audioldm_eval calls a featuresdict, its clips in the order of their names.

        Args:
            names: Take these clips only.
        """
        where = {clip_id: row for row, clip_id in enumerate(self.ids)}
        order = sorted(where if names is None else names)
        rows = torch.tensor([where[clip_id] for clip_id in order], dtype=torch.long)
        return {"2048": torch.cat(self.embedding)[rows], "logits": torch.cat(self.logits)[rows], "file_path_": order}


def reference_figures(generated: FeatureSet, real: FeatureSet, splits: int = 10) -> dict[str, float]:
    """FD, IS and KL by audioldm_eval 0.0.3.

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
        raise MusiccmError(f"--reference-implementation needs audioldm_eval 0.0.3 ({error}); `make setup` installs it, "
                           "a plain pip cannot") from error
    fake, true = generated.as_reference(), real.as_reference()
    paired = sorted(set(generated.ids) & set(real.ids))
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        try:
            figures = {"fd": calculate_fid(fake, true, "2048")["frechet_distance"]}
        except AssertionError as error:
            raise MusiccmError(f"audioldm_eval's calculate_fid gave up: {error}") from error
        found = calculate_isc(fake, "logits", REFERENCE_SEED, True, splits)
        figures |= {"is_mean": found["inception_score_mean"], "is_std": found["inception_score_std"]}
        if paired:
            kl = calculate_kl(generated.as_reference(paired), real.as_reference(paired), "logits")[0]
            figures["kl"] = kl["kullback_leibler_divergence_softmax"]
    return figures
