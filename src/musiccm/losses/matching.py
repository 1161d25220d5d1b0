"""Losses that match the distribution of a student's samples: score differences, density ratios, relativistic logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: h(r) of a divergence D_f(teacher | student), for r = p_teacher / p_student: `r^2 f''(r)` up to a factor, by which the
#: gradient of the reverse KL divergence is multiplied (f-distill, arXiv 2502.15681): forward KL, Jensen-Shannon,
#: squared Hellinger.
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda ratio: ratio,
    "js": lambda ratio: 1.0 - 1.0 / (1.0 + ratio),
    "sh": torch.sqrt,
}


def matching_loss(x: Tensor, real: Tensor, fake: Tensor, weight_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A loss whose gradient is that of distribution matching, `(x0_fake - x0_real) / mean|x - x0_real|` an element.

    The scores of the noised distributions are `(alpha x0 - z) / sigma^2`, so that the gradient of KL(fake | real) with
    respect to x points along `x0_fake - x0_real`; the mean is over an item's elements (DMD, arXiv 2311.18828, equations
    7 and 8).

    Args:
        x: the student's samples `[B, ...]`, attached to its graph.
        real: the (guided) teacher's clean estimate of x noised; a constant.
        fake: the critic's; a constant.
        weight_B: what each item's gradient is multiplied by; a constant.

    Returns:
        `0.5 mean (x - stopgrad(x - gradient))^2`, and the gradient `[B, ...]`.
    """
    shape = (-1, *[1] * (x.ndim - 1))
    with torch.no_grad():
        size = (x - real).abs().flatten(1).mean(1).clamp_min(1e-6)
        gradient = (fake - real) / size.reshape(shape)
        if weight_B is not None:
            gradient = gradient * weight_B.reshape(shape)
        target = x - gradient
    return 0.5 * (x - target).square().mean(), gradient


def density_ratio(logits: Tensor, low: float, high: float) -> Tensor:
    """`p_real / p_fake` of what a discriminator scored, which at its optimum is the exponential of its logit.

    It holds for the logistic loss, `softplus(-D(real)) + softplus(D(fake))`, of as many real as generated items.

    Args:
        logits: of any shape.
        low: least value.
        high: largest value.

    Returns:
        Ratios of the same shape.
    """
    return logits.detach().float().exp().clamp(low, high)


def ranking_loss(above: Tensor, below: Tensor) -> Tensor:
    """`softplus(below - above)`, element by element: low where the first logit is far above the second.

    The relativistic loss (arXiv 1807.00734; in pairs R3GAN, 2501.05441) has it of a real and a generated item: for the
    discriminator the real one is above, for the generator the generated one. ARC's contrastive term (2505.08175) has it
    of one real item under its own caption, above, and under another's.
    """
    return F.softplus(below - above)


def approximate_r1(logits: Tensor, perturbed: Tensor, noise: float) -> Tensor:
    """R1 without a second derivative: `E (D(x + s n) - D(x))^2 / s^2`, which is `|dD/dx|^2` but for terms in s^2.

    APT (arXiv 2501.08316) has it without the division; here its weight means the same for every s.

    Args:
        logits: of items.
        perturbed: of the same with normal noise of deviation s added.
        noise: s.

    Returns:
        The mean over items.
    """
    return ((perturbed - logits) / noise).square().mean()
