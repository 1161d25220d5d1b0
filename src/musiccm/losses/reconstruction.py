"""Mel reconstruction and KL terms of the autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mel_reconstruction(
    predicted_BMN: Tensor,
    target_BMN: Tensor,
    l1_weight: float = 1.0,
    l2_weight: float = 0.5,
    gradient_weight: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Distance between two log-mels: absolute, squared, and of their differences along time and frequency.

    An autoencoder trained on the first two alone returns the conditional median, which smears onsets and partials; the
    third term weighs exactly the edges that they average away.

    Args:
        predicted_BMN: log-mel, [B, M, N].
        target_BMN: log-mel of the same shape.
        l1_weight: weight of the mean absolute error.
        l2_weight: weight of the mean squared error.
        gradient_weight: weight of the mean absolute error of first differences (time plus frequency).

    Returns:
        The weighted total and its unweighted parts `l1`, `l2` and `gradient`.
    """
    parts = {
        "l1": F.l1_loss(predicted_BMN, target_BMN),
        "l2": F.mse_loss(predicted_BMN, target_BMN),
        "gradient": F.l1_loss(predicted_BMN.diff(dim=1), target_BMN.diff(dim=1))
        + F.l1_loss(predicted_BMN.diff(dim=2), target_BMN.diff(dim=2)),
    }
    total = l1_weight * parts["l1"] + l2_weight * parts["l2"] + gradient_weight * parts["gradient"]
    return total, parts


def gaussian_kl(mean_BCTF: Tensor, logvar_BCTF: Tensor) -> Tensor:
    """KL of a diagonal Gaussian to N(0, I), in nats per latent element.

    Args:
        mean_BCTF: posterior means.
        logvar_BCTF: log variances, of the same shape.

    Returns:
        A scalar: `mean(mean^2 + var - 1 - logvar) / 2` (Kingma and Welling 2014, appendix B).
    """
    return 0.5 * torch.mean(mean_BCTF.square() + logvar_BCTF.exp() - 1.0 - logvar_BCTF)
