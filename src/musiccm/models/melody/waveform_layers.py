"""Convolutions between waveforms and latents, each of which says what of its input an output depends on.

The residual blocks are HiFi-GAN's (Kong et al. 2020, arXiv 2010.05646, section 2.2), without weight normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
"""Of the leaky ReLUs, HiFi-GAN's."""
GAIN = math.sqrt(2.0 / (1.0 + SLOPE**2))
"""By which a layer behind such a ReLU keeps the variance."""

Span = tuple[int, int]
"""The first and the last place of a stretch."""


class Conv(nn.Conv1d):
    """A convolution that makes one output of `stride` inputs; `S` inputs, a multiple of it, give `S / stride`.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel_size: Taps, odd.
        stride: Inputs an output.
        gain: Deviation of the output at the start, where that of the input is 1.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1, gain: float = GAIN
    ) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride, kernel_size // 2)
        _start(self, gain, channels_in * kernel_size)

    def needed(self, span: Span) -> Span:
        """The stretch of the input that a stretch of the output depends on."""
        stride, pad = self.stride[0], self.kernel_size[0] // 2
        return span[0] * stride - pad, span[1] * stride + pad


class Upsample(nn.ConvTranspose1d):
    """A transposed convolution that makes exactly `stride` outputs of an input.

    HiFi-GAN's own padding leaves one more at the end where kernel and stride differ by an odd number.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel_size: Taps, at least `stride`.
        stride: Outputs an input.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int) -> None:
        pad = (kernel_size - stride + 1) // 2
        super().__init__(channels_in, channels_out, kernel_size, stride, pad, 2 * pad - (kernel_size - stride))
        _start(self, GAIN, channels_in * kernel_size / stride)

    def needed(self, span: Span) -> Span:
        """The stretch of the input that a stretch of the output depends on."""
        stride, pad, taps = self.stride[0], int(self.padding[0]), self.kernel_size[0]
        return -((taps - 1 - pad - span[0]) // stride), (span[1] + pad) // stride


@torch.no_grad()
def _start(layer: nn.Conv1d | nn.ConvTranspose1d, gain: float, fan_in: float) -> None:
    """Initial weights for which the output's deviation is `gain` times the input's, without an offset."""
    layer.weight.normal_(0.0, gain / math.sqrt(fan_in))
    assert layer.bias is not None
    layer.bias.zero_()


class ResidualBlock(nn.Module):
    """Pairs of convolutions with a residual around each pair; the first of a pair is dilated.

    Args:
        channels: Channels.
        kernel_size: Taps, odd.
        dilations: Of the first convolution of each pair.
    """

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.side = kernel_size // 2 * sum(dilation + 1 for dilation in dilations)
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2 * dilation, dilation=dilation)
            for dilation in dilations
        )
        self.plain = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in dilations
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        """The sum of the input and what the pairs add to it."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x_BCT = x_BCT + plain(F.leaky_relu(dilated(F.leaky_relu(x_BCT, SLOPE)), SLOPE))
        return x_BCT


class Fusion(nn.Module):
    """The mean of residual blocks of several kernels side by side: HiFi-GAN's multi-receptive field fusion.

    Args:
        channels: Channels.
        kernel_sizes: Taps of each block.
        dilations: Dilations of each block.
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int], dilations: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, size, of_block) for size, of_block in zip(kernel_sizes, dilations, strict=True)
        )
        self.side = max(block.side for block in self.blocks)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """All blocks of the same input, averaged."""
        total = self.blocks[0](x_BCT)
        for block in self.blocks[1:]:
            total = total + block(x_BCT)
        return total / len(self.blocks)

    def needed(self, span: Span) -> Span:
        """The stretch of the input that a stretch of the output depends on."""
        return span[0] - self.side, span[1] + self.side


def needed_by(layers: Sequence[nn.Module], span: Span) -> Span:
    """The stretch of the first layer's input that a stretch of the last one's output depends on.

    Args:
        layers: `Conv`, `Upsample` and `Fusion`, in order.
        span: First and last place of the output.

    Returns:
        First and last place of the input, as if it had no ends.
    """
    for layer in reversed(layers):
        assert isinstance(layer, Conv | Upsample | Fusion)
        span = layer.needed(span)
    return span
