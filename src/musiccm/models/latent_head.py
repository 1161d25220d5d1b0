"""A light head that tells generated latents from real ones by a feature map of a U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LatentHead(nn.Sequential):
    """Two strided convolutions with group norm and SiLU, the mean over positions, and a linear map to one logit.

    Args:
        width: channels of the feature map.
        groups: of the group norms; divides `width`.
    """

    def __init__(self, width: int, groups: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(groups, width), nn.SiLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Score feature maps, in float32 under any autocast; `[B]` logits, high for real."""
        with torch.autocast(features_BCHW.device.type, enabled=False):
            return super().forward(features_BCHW.float())
