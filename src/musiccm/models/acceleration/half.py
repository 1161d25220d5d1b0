"""Copies of frozen networks that hold in bf16 what autocast would cast to it at every call."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn
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
