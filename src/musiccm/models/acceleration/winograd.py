"""3 x 3 convolutions with a quarter of the multiplications, for wide layers on a CPU.

Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray 2016, arXiv 1509.09308): 36 multiplications give 16 outputs
that take 144 directly. PyTorch's CPU kernels do not use it in float32. The transforms cost as much as they save where
there are few channels; errors stay near 1e-5 of the largest output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE, PATCH = 4, 6
# Interpolation points 0, 1, -1, 2, -2 and infinity.
_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
          [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_KERNEL = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
           [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class WinogradConv2d(nn.Module):
    """A frozen 3 x 3 convolution with stride 1 and padding 1.

    Args:
        weight_OC33: Kernels.
        bias_O: Biases.
    """

    kernels: Tensor
    bias: Tensor
    patch_to: Tensor
    tile_from: Tensor

    def __init__(self, weight_OC33: Tensor, bias_O: Tensor) -> None:
        super().__init__()
        one = torch.tensor(_KERNEL, dtype=torch.float32)
        outputs, inputs = weight_OC33.shape[:2]
        # as one product: a product for each of millions of 3 x 3 kernels takes seconds
        columns = weight_OC33.detach().float().permute(2, 3, 1, 0).reshape(9, -1)
        kernels = (torch.kron(one, one) @ columns).view(PATCH**2, inputs, outputs)
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("bias", bias_O.detach().float().clone(), persistent=False)
        for name, matrix in (("patch_to", _INPUT), ("tile_from", _OUTPUT)):
            one = torch.tensor(matrix, dtype=torch.float32)
            self.register_buffer(name, torch.kron(one, one), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve.

        Args:
            x_BCHW: Images; channels-last memory saves a copy.

        Returns:
            `[B, O, H, W]` in channels-last memory.
        """
        batch, channels, height, width = x_BCHW.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        x = F.pad(x_BCHW, (1, columns * TILE - width + 1, 1, rows * TILE - height + 1)).permute(0, 2, 3, 1)
        patches = x.unfold(1, PATCH, TILE).unfold(2, PATCH, TILE).permute(4, 5, 0, 1, 2, 3)
        transformed = (self.patch_to @ patches.reshape(PATCH**2, -1)).view(PATCH**2, -1, channels)
        products = torch.bmm(transformed, self.kernels)
        outputs = self.kernels.shape[2]
        tiles = (self.tile_from @ products.view(PATCH**2, -1)).view(TILE, TILE, batch, rows, columns, outputs)
        y = tiles.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * TILE, columns * TILE, outputs)
        return (y[:, :height, :width] + self.bias).permute(0, 3, 1, 2)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution together with the batch norm behind it, in eval mode.

    Args:
        conv: The convolution.
        norm: The norm, with its running statistics.

    Returns:
        `(weight, bias)`, float32.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    folded = norm.bias.double() + scale * (bias - norm.running_mean.double())
    return (conv.weight.double() * scale[:, None, None, None]).float(), folded.float()
