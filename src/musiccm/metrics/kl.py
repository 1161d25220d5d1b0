"""KL(reference || generated) of class probabilities, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows

# audioldm_eval adds this to the generated probabilities before it takes their logarithm.
AUDIOLDM_EPS = 1e-6


def kl_rows(reference_NC: Tensor, generated_NC: Tensor, eps: float = 0.0) -> Tensor:
    """`sum_c p_r (log p_r - log(p_g + eps))` of softmax probabilities, float64 (SPEC 8).

    Args:
        reference_NC: Logits of the reference clips, `[N, C]`.
        generated_NC: Logits of the generated clips, `[N, C]`.
        eps: 0 is the divergence itself; 1e-6 is audioldm_eval's form, which can be slightly negative.

    Returns:
        One value a pair, `[N]`.
    """
    log_r = reference_NC.double().log_softmax(dim=1)
    log_g = generated_NC.double().log_softmax(dim=1)
    if eps:
        log_g = (log_g.exp() + eps).log()
    return (log_r.exp() * (log_r - log_g)).sum(dim=1)


class KLDivergence(ClipMetric):
    """Mean KL(reference || generated) over pairs with the same clip id."""

    higher_is_better = False

    def __init__(self, reset_real_features: bool = True, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            reset_real_features: Whether `reset` forgets the reference clips too.
            **kwargs: Passed to `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.reset_real_features = reset_real_features
        for side in ("real", "fake"):
            self.add_ids(f"{side}_ids")
            self.add_rows(f"{side}_logits", 2, torch.float32)

    def update(self, logits: Tensor, ids: Sequence[str], real: bool) -> None:
        """Add clips to one side.

        Args:
            logits: Class logits, `[B, C]`.
            ids: Clip ids, `B` of them.
            real: Whether they are the reference.
        """
        require_rows("KL logits", logits, ids)
        side = "real" if real else "fake"
        keep = self.take_new(f"{side}_ids", ids)
        getattr(self, f"{side}_logits").append(logits.detach()[keep].float().to(self.device))

    def compute(self) -> dict[str, float | int]:
        """The divergence, over the generated clips.

        Returns:
            `kl` in audioldm_eval's form, comparable with published figures; `kl_exact` without its eps; `n` pairs.

        Raises:
            MusiccmError: No generated clip, or one without a reference.
        """
        real_ids, real_at = self.unique("real_ids")
        fake_ids, fake_at = self.unique("fake_ids")
        position = dict(zip(real_ids, real_at.tolist(), strict=True))
        missing = [clip_id for clip_id in fake_ids if clip_id not in position]
        if missing or not fake_ids:
            raise MusiccmError(
                f"KL divergence: expected a reference clip for each of {len(fake_ids)} generated clips, found none for "
                f"{len(missing)}, first {missing[:3]}; names must agree on both sides"
            )
        reference = self.joined("real_logits")[[position[clip_id] for clip_id in fake_ids]]
        generated = self.joined("fake_logits")[fake_at]
        parity, exact = (kl_rows(reference, generated, eps).mean() for eps in (AUDIOLDM_EPS, 0.0))
        return {"kl": float(parity), "kl_exact": float(exact), "n": len(fake_ids)}

    def reset(self) -> None:
        """Forget the generated clips, and the reference unless it is to be kept."""
        if self.reset_real_features:
            super().reset()
            return
        names = ("real_ids", "real_logits")
        kept = {name: list(getattr(self, name)) for name in names}  # reset clears the lists themselves
        seen = set(self._seen["real_ids"])
        super().reset()
        for name in names:
            setattr(self, name, kept[name])
        self._seen["real_ids"] = seen
