"""Networks in the form that suits their device, against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_bundle import make_unet
from torch import nn
from torch.nn import functional as F

from musiccm.models.acceleration.networks import CompiledNetwork, CpuConv2d, UnfoldedConv2d, suit_cpu, to_bfloat16
from musiccm.models.acceleration.winograd import WinogradConv2d
from musiccm.models.denoiser import Float32Conv2d


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("size", "way"), [((3, 2), UnfoldedConv2d), ((8, 17), WinogradConv2d)])
def test_a_convolution_is_the_same_in_the_way_that_suits_its_size(size: tuple[int, int], way: type) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(128, 130, 3, padding=1)
    x = torch.randn(2, 128, *size)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    ours = CpuConv2d(layer)
    with torch.inference_mode():
        found = ours(x.contiguous(memory_format=torch.channels_last))
    assert isinstance(ours.way, way) and found.shape == expected.shape
    assert relative(found, expected) < 1e-5
    # what was made in inference mode serves outside it
    leaf = x.clone().requires_grad_()
    ours(leaf).sum().backward()
    assert relative(leaf.grad, torch.autograd.grad(layer(lead := x.clone().requires_grad_()).sum(), lead)[0]) < 1e-5


def test_only_wide_plain_convolutions_are_replaced() -> None:
    plain = [nn.Conv2d(128, 128, 3, padding=1)]
    kept = [nn.Conv2d(128, 128, 3, padding=1, stride=2), nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 1),
            nn.Conv2d(128, 128, 3, padding=1, groups=2), nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.Conv2d(128, 128, 3, padding=1).bfloat16(),
            nn.Conv2d(128, 128, 5, padding=1), Float32Conv2d(128, 128, 3, padding=1)]
    network = nn.Sequential(*plain, nn.Sequential(*kept))
    suit_cpu(network)
    assert [type(layer) is CpuConv2d for layer in network] == [True, False]
    assert all(a is b for a, b in zip(network[1], kept, strict=True))


def test_bf16_spares_the_last_layer() -> None:
    unet = make_unet()
    unet.conv_out = Float32Conv2d.sharing(unet.conv_out)
    to_bfloat16(unet)
    assert {p.dtype for p in unet.conv_out.parameters()} == {torch.float32}
    assert {p.dtype for name, p in unet.named_parameters() if "conv_out" not in name} == {torch.bfloat16}


def test_results_of_a_compiled_network_outlive_its_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend stands for CUDA graphs: it writes every result into the same memory."""
    shared: dict[torch.Size, torch.Tensor] = {}
    marks = []

    def reusing(graph: torch.fx.GraphModule, _: object) -> object:
        def run(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            (result,) = graph(*args)
            return (shared.setdefault(result.shape, torch.empty_like(result)).copy_(result),)

        return run

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU()).requires_grad_(False)
    compiled = CompiledNetwork(copy.deepcopy(network), reusing)
    first, second = torch.randn(2, 1, 2, 5, 5)
    a, b = compiled(first), compiled(second)
    torch.testing.assert_close(a, network(first))
    torch.testing.assert_close(b, network(second))
    assert len(marks) == 2


def test_a_smaller_batch_is_computed_by_a_larger_one_once_that_is_asked_for() -> None:
    compiled_for: list[int] = []

    def noting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled_for.append(len(next(one for one in inputs if one.shape[-1] == 5)))  # no kernel
        return graph

    network = nn.Conv2d(2, 3, 3).requires_grad_(False)
    compiled = CompiledNetwork(copy.deepcopy(network), noting)
    x = torch.randn(8, 2, 5, 5)
    for rows in (2, 4):
        torch.testing.assert_close(compiled(x[:rows]), network(x[:rows]))
    compiled.serves_smaller = True
    for rows in (1, 3, 4, 2):
        torch.testing.assert_close(compiled(x[:rows]), network(x[:rows]))
    assert compiled_for == [2, 4]
    compiled(x[:5])  # there is none larger
    compiled(x[:1, :, :4])  # nor one of that size
    assert compiled_for == [2, 4, 5, 1]
