"""Copies of frozen networks that hold weights in bf16: for autocast, or with the rest of the arithmetic in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from musiccm.models.denoiser import Float32Conv2d

Network = TypeVar("Network", bound=nn.Module)


def half_copy(network: Network, shared: Iterable[object] = ()) -> Network:
    """A copy for use under bf16 autocast, which computes the very same numbers as the original does there.

    Autocast casts the weights of convolutions and linear layers before each call, and remembers the result only for
    weights that are trained. The copy holds exactly these in bf16; all else (norms, embeddings, the float32 output
    layer, buffers) is shared with the original, which stays in float32 for whatever runs without autocast.

    Args:
        network: a frozen network on its device; not changed.
        shared: attributes anywhere in it that are taken over as they are, such as parts that the step does not call.

    Returns:
        The copy.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    memo |= {id(part): part for part in shared if part is not None}
    for module in network.modules():
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, Float32Conv2d):
            for parameter in module.parameters(recurse=False):
                memo[id(parameter)] = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
    return copy.deepcopy(network, memo)


class Bf16Linear(nn.Module):
    """A linear layer whose product is computed in bf16; what comes in is rounded to it, what goes out is float32.

    Args:
        layer: The frozen layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(torch.bfloat16),
                                                                 requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(x.to(torch.bfloat16), self.weight, self.bias).float()


def bf16_products(network: Network, kept: Iterable[str] = ()) -> Network:
    """A copy whose linear layers are `Bf16Linear`; all between them stays in float32, and is shared with the original.

    Args:
        network: A frozen float32 network on its device; not changed.
        kept: Beginnings of the names of layers that stay in float32 too.

    Returns:
        The copy.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    result = copy.deepcopy(network, memo)
    for name, module in list(result.named_modules()):
        if type(module) is nn.Linear and not name.startswith(tuple(kept)):
            result.set_submodule(name, Bf16Linear(module))
    return result
