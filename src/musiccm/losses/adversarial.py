"""The adversarial losses: hinge or another, with an R1 penalty on the heads' inputs.

MusicCM (arXiv 2404.13358, section 3.3) after ADD (arXiv 2311.17042, equation 3). Each loss keeps to its own side:
`generator_loss` leaves no gradient in the discriminator and `discriminator_loss` none in whatever made the features,
however the caller arranges its backward passes. All of it runs in float32 under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Treat a module's parameters as constants within the block, and restore their flags after it.

    A graph that was built within stays free of these parameters: its backward pass may run after the block.

    Args:
        module: the module to freeze.

    Yields:
        Nothing.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class AdversarialLoss:
    """What each side makes of logits, element by element; this one is the hinge, MusicCM's after ADD."""

    def generator(self, fake: Tensor) -> Tensor:
        """What the generator lowers."""
        return -fake

    def real(self, real: Tensor) -> Tensor:
        """What the discriminator lowers on the real side."""
        return torch.relu(1.0 - real)

    def fake(self, fake: Tensor) -> Tensor:
        """What the discriminator lowers on the generated side."""
        return torch.relu(1.0 + fake)


class NonSaturating(AdversarialLoss):
    """The logistic loss, with the generator's form that does not saturate (GAN, arXiv 1406.2661)."""

    def generator(self, fake: Tensor) -> Tensor:
        """`-log sigmoid`."""
        return F.softplus(-fake)

    def real(self, real: Tensor) -> Tensor:
        """`-log sigmoid`."""
        return F.softplus(-real)

    def fake(self, fake: Tensor) -> Tensor:
        """`-log (1 - sigmoid)`."""
        return F.softplus(fake)


class LeastSquares(AdversarialLoss):
    """Squared distances from 1 for real and 0 for generated (Mao et al. 2017, arXiv 1611.04076)."""

    def generator(self, fake: Tensor) -> Tensor:
        """`(1 - D)^2`."""
        return (1.0 - fake).square()

    def real(self, real: Tensor) -> Tensor:
        """`(1 - D)^2`."""
        return (1.0 - real).square()

    def fake(self, fake: Tensor) -> Tensor:
        """`D^2`."""
        return fake.square()


HINGE = AdversarialLoss()
NON_SATURATING = NonSaturating()
LEAST_SQUARES = LeastSquares()
ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {"hinge": HINGE, "non_saturating": NON_SATURATING}


def generator_loss(
    discriminator: nn.Module, fake_features: Sequence[Tensor], cond_BD: Tensor, loss: AdversarialLoss = HINGE
) -> tuple[Tensor, dict[str, Tensor]]:
    """`L_G = -E sum_k D_k(F_k(x0_pred))`; the mean is over samples and tokens.

    Args:
        discriminator: `(features, cond_BD) -> list[K] of logits`; held constant.
        fake_features: K tensors `[B, tokens, width]` of the student's output, attached to the student's graph.
        cond_BD: the discriminator's condition; detached.
        loss: what is made of the logits.

    Returns:
        `(total, parts)` with parts `{"loss_g"}`.
    """
    with frozen(discriminator), _float32(cond_BD):
        logits = discriminator([feature.float() for feature in fake_features], cond_BD.detach().float())
    total = _sum_of_means([loss.generator(logit) for logit in logits])
    return total, {"loss_g": total.detach()}


def discriminator_loss(
    discriminator: nn.Module,
    real_features: Sequence[Tensor],
    fake_features: Sequence[Tensor],
    cond_BD: Tensor,
    r1_gamma: float = 1e-5,
    loss: AdversarialLoss = HINGE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`L_D = E sum_k max(0, 1 - D_k(F_k(real))) + gamma R1 + E sum_k max(0, 1 + D_k(F_k(fake)))`.

    Args:
        discriminator: `(features, cond_BD) -> list[K] of logits`.
        real_features: K tensors `[B, tokens, width]`; detached here.
        fake_features: the same of the student's output; detached here.
        cond_BD: the discriminator's condition; detached here.
        r1_gamma: weight of the R1 penalty; 1e-5 is ADD's, MusicCM gives none. At 0 it is not computed.
        loss: what is made of the logits.

    Returns:
        `(total, parts)`. Parts: `loss_d` (the total), `r1` (before gamma), `score_real` and `score_fake` (mean logits
        over heads), `accuracy_real` and `accuracy_fake` (share of logits on the right side of 0).
    """
    cond_BD = cond_BD.detach().float()
    if r1_gamma > 0.0:
        r1, real_logits = r1_penalty(discriminator, real_features, cond_BD)
    else:
        with _float32(cond_BD):
            real_logits = discriminator([feature.detach().float() for feature in real_features], cond_BD)
        r1 = cond_BD.new_zeros(())
    with _float32(cond_BD):
        fake_logits = discriminator([feature.detach().float() for feature in fake_features], cond_BD)
    loss_real = _sum_of_means([loss.real(logit) for logit in real_logits])
    loss_fake = _sum_of_means([loss.fake(logit) for logit in fake_logits])
    total = loss_real + loss_fake + r1_gamma * r1
    heads = len(real_logits)
    parts = {
        "loss_d": total,
        "r1": r1,
        "score_real": _sum_of_means(real_logits) / heads,
        "score_fake": _sum_of_means(fake_logits) / heads,
        "accuracy_real": _sum_of_means([(logit > 0).float() for logit in real_logits]) / heads,
        "accuracy_fake": _sum_of_means([(logit < 0).float() for logit in fake_logits]) / heads,
    }
    return total, {name: part.detach() for name, part in parts.items()}


def r1_penalty(
    discriminator: nn.Module, real_features: Sequence[Tensor], cond_BD: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """R1: `E_B sum_k |d D_k / d F_k|^2`, with respect to the heads' input features and to nothing before them.

    `D_k` is the sum of a sample's token logits. With the mean instead, the penalty would shrink with the square of the
    number of tokens, and gamma = 1e-5 would do nothing.

    Args:
        discriminator: `(features, cond_BD) -> list[K] of logits`.
        real_features: K tensors `[B, tokens, width]`; used as fresh leaves, so no gradient reaches what made them.
        cond_BD: the discriminator's condition.

    Returns:
        `(penalty, logits)`: a scalar that can be differentiated with respect to the heads' weights, and the logits of
        the same forward pass, so that the hinge term needs no second one.
    """
    leaves = [feature.detach().float().requires_grad_() for feature in real_features]
    with _float32(cond_BD):
        logits = discriminator(leaves, cond_BD.detach().float())
        gradients = torch.autograd.grad(sum(logit.sum() for logit in logits), leaves, create_graph=True)
        penalty = torch.stack([gradient.square().flatten(1).sum(1).mean() for gradient in gradients]).sum()
    return penalty, logits


def _float32(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _sum_of_means(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([logit.mean() for logit in logits]).sum()
