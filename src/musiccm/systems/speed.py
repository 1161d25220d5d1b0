"""How a training step is computed, never what: recomputed activations, compiled networks, layouts that match."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


def recompute_activations(networks: Iterable[nn.Module]) -> None:
    """Keep only the inputs of each block for the backward pass, which then computes the block a second time.

    Args:
        networks: models of diffusers, changed in place.
    """
    for network in networks:
        network.enable_gradient_checkpointing()  # type: ignore[operator]


def compile_networks(networks: Iterable[nn.Module], backend: str | Callable) -> None:
    """Compile networks in place, at their first call; names in their state stay as they are.

    Args:
        networks: the networks.
        backend: of `torch.compile`, by name or as a function.
    """
    networks = list(networks)
    # PyTorch counts what it compiled by class, however many networks are of it, and leaves the rest as it is: each is
    # called with gradients and without, with weights frozen and not
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(networks))
    for network in networks:
        network.compile(backend=backend)


def match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's moments the memory layout of their parameters.

    The fused kernels walk all of them in the order of memory, and a checkpoint may have been written with another
    `optimization.channels_last` than the run has that resumes from it.

    Args:
        optimizer: with its state restored; changed in place.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                if value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
