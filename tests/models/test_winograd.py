"""Winograd's convolution against PyTorch's in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from musiccm.models.acceleration.winograd import WinogradConv2d, fold_batch_norm


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 5, 7, 2), (3, 16, 12, 8), (1, 64, 33, 5)])
def test_equals_the_direct_convolution(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(9, shape[1], 3, 3, generator=generator), torch.randn(9, generator=generator)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = WinogradConv2d(weight, bias)(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 3e-5 * expected.abs().max()


def test_folded_norm_equals_convolution_and_norm() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    x = torch.randn(2, 4, 9, 8)
    weight, bias = fold_batch_norm(conv, norm.eval())
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=1), norm(conv(x)), atol=1e-5, rtol=1e-5)
