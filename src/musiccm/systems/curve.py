"""The learning-rate curve of every training."""

from __future__ import annotations

import math

#: Shapes of the fall at the end.
DECAYS = ("cosine", "linear")


def learning_rate_factor(
    step: int, warmup_steps: int, progress: float, decay_share: float = 1.0, final_share: float = 0.0,
    decay: str = "cosine",
) -> float:
    """Share of the peak learning rate: linear to 1 over the warm-up, held, then down to `final_share`.

    Args:
        step: optimizer steps done.
        warmup_steps: of the linear warm-up.
        progress: share of the run that is done, in 0..1.
        decay_share: share of the run, at its end, over which the rate falls; 1 falls all the way, 0 never.
        final_share: what is left at the end.
        decay: the fall is half a `cosine`, or `linear`.

    Returns:
        The factor, in 0..1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = 1.0 - progress
    if left >= decay_share:
        return 1.0
    if decay == "linear":
        return final_share + (1 - final_share) * left / decay_share
    return final_share + (1 - final_share) * 0.5 * (1 - math.cos(math.pi * left / decay_share))
