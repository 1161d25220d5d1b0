"""Masked patch reconstruction (masked autoencoders)."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(image_B1MN: Tensor, patch: int) -> Tensor:
    """Cut a one-channel image into non-overlapping square patches, row-major as timm's PatchEmbed orders them.

    Args:
        image_B1MN: [B, 1, M, N] with M and N multiples of the patch.
        patch: side of a patch.

    Returns:
        [B, (M / patch) (N / patch), patch^2].
    """
    return torch.nn.functional.unfold(image_B1MN, patch, stride=patch).transpose(1, 2)


def random_keep(batch: int, patches: int, mask_ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the visible patches of each image, uniformly without replacement.

    Args:
        batch: number of images.
        patches: patches in an image.
        mask_ratio: share that is hidden; the visible count is rounded and at least 1.
        generator: source of randomness; its device is the result's.

    Returns:
        `keep_BL`, sorted indices of visible patches, and `hidden_BP`, 1.0 where a patch is hidden.
    """
    visible = max(1, round(patches * (1.0 - mask_ratio)))
    scores = torch.rand(batch, patches, generator=generator, device=generator.device)
    keep_BL = scores.argsort(dim=1)[:, :visible].sort(dim=1).values
    hidden_BP = torch.ones(batch, patches, device=generator.device).scatter(1, keep_BL, 0.0)
    return keep_BL, hidden_BP


def masked_patch_loss(predicted_BPQ: Tensor, target_BPQ: Tensor, hidden_BP: Tensor, eps: float = 1e-6) -> Tensor:
    """Mean squared error on hidden patches, each target normalised by its own mean and variance.

    MAE (He et al. 2022, section 4.1, "w/ norm"); AudioMAE (Huang et al. 2022) keeps the same loss.

    Args:
        predicted_BPQ: predicted patches, [B, P, Q].
        target_BPQ: true patches.
        hidden_BP: 1.0 where the encoder did not see the patch.
        eps: added to the variance; a silent patch has none.

    Returns:
        A scalar.
    """
    mean = target_BPQ.mean(dim=-1, keepdim=True)
    variance = target_BPQ.var(dim=-1, keepdim=True)
    error_BP = (predicted_BPQ - (target_BPQ - mean) / (variance + eps).sqrt()).square().mean(dim=-1)
    return (error_BP * hidden_BP).sum() / hidden_BP.sum()
