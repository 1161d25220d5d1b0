"""The half of a U-Net that a discriminator looks at: down to the middle block, and what its blocks give."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from musiccm.diffusion import AnyCondition
from musiccm.models.denoiser import Denoiser


def encoder_half(unet: nn.Module) -> nn.Module:
    """A U-Net of diffusers that ends behind its middle block, whose output is then its own.

    It holds the very modules of the other: what is trained, moved or recomputed there is so here. Copy it to have one
    of its own.

    Args:
        unet: a `UNet2DConditionModel`; not changed.

    Returns:
        The network, `[B, C, H, W]` out.
    """
    half: Any = copy.copy(unet)
    half._modules = dict(unet._modules)
    half.up_blocks, half.conv_norm_out, half.conv_out = nn.ModuleList(), None, nn.Identity()
    return half


def widths(unet: Any) -> list[int]:
    """Channels of what `features` gives of a U-Net."""
    channels = list(unet.config.block_out_channels)
    return [*channels, channels[-1]]


def features(
    denoiser: Denoiser, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, middle_only: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """One call of a denoiser, with what its blocks gave on the way.

    Args:
        denoiser: of a whole U-Net, or of half of one.
        z_BCTF: noisy latents.
        t_B: timesteps.
        cond_BD: conditions.
        middle_only: leave the down blocks out.

    Returns:
        The network's own output, and feature maps `[B, C, H, W]` of every down block and of the middle block.
    """
    unet: Any = denoiser.unet
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])  # a down block gives its skips too

    watched: Sequence[Any] = [unet.mid_block] if middle_only else [*unet.down_blocks, unet.mid_block]
    handles = [block.register_forward_hook(keep) for block in watched]
    try:
        output = denoiser.output(z_BCTF, t_B, cond_BD)
    finally:
        for handle in handles:
            handle.remove()
    return output, found
