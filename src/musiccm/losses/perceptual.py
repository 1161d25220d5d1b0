"""A distance between latents by the features that a frozen network sees in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.errors import MusiccmError
from musiccm.losses.distillation import DISTANCES, distance


class FeatureDistance(nn.Module):
    """An element-wise distance, and one of features as LPIPS has it (arXiv 1801.03924, equation 1, without weights).

    `sum_k mean_tokens |u_k(prediction) - u_k(target)|^2`, where u_k is feature k scaled to unit length at every token,
    so that layers of any scale count alike; 0 to 4 a layer.

    Args:
        network: latents `[B, C, T, F] -> list[K] of [B, tokens, width]`, such as `DecodedFeatures`; held constant.
        weight: of the features' distance.
        element: the element-wise distance, one of `DISTANCES`.
        element_weight: its weight; 0 leaves it out.
        huber_h: of a pseudo-Huber one.

    Raises:
        MusiccmError: an unknown element-wise distance, or weights that are negative or both 0.
    """

    def __init__(
        self, network: nn.Module, weight: float = 1.0, element: str = "pseudo_huber", element_weight: float = 1.0,
        huber_h: float = 1e-3,
    ) -> None:
        super().__init__()
        if element not in DISTANCES:
            raise MusiccmError(f"distance.element: expected one of {', '.join(DISTANCES)}, found {element!r}.")
        if not (weight >= 0 and element_weight >= 0 and weight + element_weight > 0):
            raise MusiccmError("distance: expected weight and element_weight from 0 on, and not both 0, found "
                               f"{weight} and {element_weight}.")
        self.network = network
        self.weight, self.element, self.element_weight, self.huber_h = weight, element, element_weight, huber_h

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distances, `[B]`, float32 or better.

        Args:
            prediction: latents; gradients flow to them.
            target: the same shape; detached here.
        """
        target = target.detach()
        total = distance(prediction, target, self.element, self.huber_h).flatten(1).mean(1) * self.element_weight
        if self.weight:
            with torch.no_grad():
                wanted = [_unit(feature) for feature in self.network(target)]
            found = [_unit(feature) for feature in self.network(prediction)]
            gaps = [(a - b).square().sum(-1).mean(1) for a, b in zip(found, wanted, strict=True)]
            total = total + self.weight * torch.stack(gaps).sum(0)
        return total


def _unit(feature: Tensor) -> Tensor:
    dtype = torch.promote_types(feature.dtype, torch.float32)
    return F.normalize(feature.to(dtype), dim=-1, eps=1e-8)
