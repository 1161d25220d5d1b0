"""Losses: tensors in, `(total, parts)` out, the parts keyed by the names that they are logged under."""

from musiccm.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    discriminator_loss,
    frozen,
    generator_loss,
    r1_penalty,
)
from musiccm.losses.distillation import DISTANCES, distance, distillation_loss

__all__ = [
    "ADVERSARIAL_LOSSES",
    "DISTANCES",
    "AdversarialLoss",
    "discriminator_loss",
    "distance",
    "distillation_loss",
    "frozen",
    "generator_loss",
    "r1_penalty",
]
