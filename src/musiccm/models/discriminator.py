"""Light trainable heads on frozen features: the discriminator of the adversarial loss.

After StyleGAN-T (arXiv 2301.09515, section 3.2) and ADD (arXiv 2311.17042, section 3.2): one head a feature depth.
Nothing in it is shared between ranks or kept between batches: batch norm uses the statistics of the batch at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from musiccm.errors import MusiccmError


class LocalBatchNorm(nn.Module):
    """Batch norm over small virtual groups of the local batch, without running statistics.

    The batch is cut into `ceil(B / group_size)` groups whose sizes differ by at most one, so any batch size works, a
    single sample too (its statistics then run over its tokens alone). Never synchronised across processes: a score
    depends on at most `group_size` neighbours, whatever the global batch.

    Args:
        channels: number of channels C.
        group_size: the largest group.
        eps: added to the variance.
    """

    def __init__(self, channels: int, group_size: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        self.group_size = group_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over its group's samples and tokens.

        Args:
            x: `[B, C, tokens]`.

        Returns:
            The same shape.
        """
        groups = -(-x.shape[0] // self.group_size)
        cudnn = torch.backends.cudnn.enabled
        normed = [
            # torch's own kernel, since functional.batch_norm refuses a group of a single value a channel
            torch.batch_norm(group, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)
            for group in x.tensor_split(groups)
        ]
        return torch.cat(normed)


class _Block(nn.Module):
    """Spectral-norm convolution over tokens, local batch norm, LeakyReLU."""

    def __init__(self, width_in: int, width_out: int, kernel_size: int) -> None:
        super().__init__()
        # Zero padding: tokens are a sequence with ends, and feature maps shorter than the kernel stay possible.
        self.conv = spectral_norm(nn.Conv1d(width_in, width_out, kernel_size, padding=kernel_size // 2))
        self.norm = LocalBatchNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class DiscriminatorHead(nn.Module):
    """One projection head on one depth of features.

    A width-1 block, a residual block of width 9 along the tokens (scaled by 1/sqrt(2), which keeps the variance), a 1x1
    convolution, and the inner product with a linear map of the condition, over sqrt(head_width). That map has a bias,
    so the score has an unconditional part as well.

    Args:
        width: feature width D of this depth.
        cond_width: width of the condition.
        head_width: inner width; the head has about `head_width (width + 10 head_width + cond_width)` weights.
    """

    def __init__(self, width: int, cond_width: int, head_width: int = 64) -> None:
        super().__init__()
        self.inner = _Block(width, head_width, 1)
        self.mixing = _Block(head_width, head_width, 9)
        self.outer = spectral_norm(nn.Conv1d(head_width, head_width, 1))
        self.condition = nn.Linear(cond_width, head_width)

    def forward(self, tokens: Tensor, cond_BD: Tensor) -> Tensor:
        """Score every token.

        Args:
            tokens: features `[B, tokens, width]`.
            cond_BD: condition.

        Returns:
            Logits `[B, tokens]`, high for real.
        """
        x = self.inner(tokens.transpose(1, 2))
        x = (x + self.mixing(x)) / math.sqrt(2.0)
        x = self.outer(x)
        return (x * self.condition(cond_BD)[:, :, None]).sum(1) / math.sqrt(x.shape[1])


class Discriminator(nn.Module):
    """One head for every depth of a frozen feature network.

    Args:
        widths: feature width of each depth, in the order in which the features come.
        cond_width: width of the condition, which is the text embedding and the clip's own mel embedding side by side.
        head_width: inner width of the heads.

    Raises:
        MusiccmError: if `widths` is empty.
    """

    def __init__(self, widths: Sequence[int], cond_width: int, head_width: int = 64) -> None:
        super().__init__()
        if not widths:
            raise MusiccmError("discriminator widths: expected at least one feature width, found none.")
        self.widths = [int(width) for width in widths]
        self.cond_width = cond_width
        self.heads = nn.ModuleList(DiscriminatorHead(width, cond_width, head_width) for width in self.widths)

    def forward(self, features: Sequence[Tensor], cond_BD: Tensor) -> list[Tensor]:
        """Score features.

        Args:
            features: K tensors `[B, tokens_k, width_k]`.
            cond_BD: condition.

        Returns:
            K tensors of logits `[B, tokens_k]`, high for real.

        Raises:
            MusiccmError: if the features or the condition have other widths than the heads were made for.
        """
        found = [feature.shape[-1] for feature in features]
        if found != self.widths or cond_BD.shape[-1] != self.cond_width:
            raise MusiccmError(
                f"discriminator: expected features of widths {self.widths} and a condition of width {self.cond_width}, "
                f"found {found} and {cond_BD.shape[-1]}. Make the heads from the feature network that they are used on."
            )
        return [head(feature, cond_BD) for head, feature in zip(self.heads, features, strict=True)]
