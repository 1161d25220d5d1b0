from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from musiccm.errors import MusiccmError
from musiccm.models.ema import Ema


def network(value: float = 0.0) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 0.999])
def test_updates_are_the_geometric_sum(decay: float, device: str) -> None:
    ema = Ema(network(0.0).to(device), decay)
    for n in range(1, 4):
        ema.update(network(1.0).to(device))
        for parameter in ema.module.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - decay**n), rtol=1e-6, atol=1e-7)


def test_buffers_are_copied_and_the_source_is_untouched() -> None:
    source = network(1.0)
    ema = Ema(source, 0.9)
    source.train()(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(source.state_dict())
    ema.update(source)
    assert int(ema.module[1].num_batches_tracked) == 1
    torch.testing.assert_close(ema.module[1].running_mean, source[1].running_mean)
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())


def test_updates_equal_to_the_bit_those_of_one_tensor_after_the_other(device: str) -> None:
    """Whatever was replaced meanwhile: parameters are looked up at each update, in the network that is named."""
    generator = torch.Generator().manual_seed(0)

    def filled() -> nn.Module:
        module = network().to(device)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(device)
        return module

    source, other = filled(), filled()
    ema = Ema(source, 0.9)
    expected = [parameter.clone() for parameter in source.parameters()]
    for followed in (source, source, other, source):
        source[0].weight = nn.Parameter(torch.randn(3, 2, generator=generator).to(device))
        ema.update(followed)
        for average, parameter in zip(expected, followed.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - 0.9)
        assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), expected, strict=True))


def test_a_copy_follows_the_copy_of_its_network() -> None:
    owner = nn.ModuleDict({"network": network(1.0)})
    owner["ema"] = Ema(owner["network"], 0.5)
    owner["ema"].update(owner["network"])
    alone = copy.deepcopy(owner["ema"])
    assert not {id(module) for module in alone.modules()} & {id(module) for module in owner.modules()}
    second = copy.deepcopy(owner)
    nn.init.constant_(second["network"][0].weight, 3.0)
    second["ema"].update(second["network"])
    assert float(second["ema"].module[0].weight.detach().mean()) == 2.0
    alone.update(second["network"])
    assert float(alone.module[0].weight.detach().mean()) == 2.0


def test_average_of_a_bf16_network_is_kept_in_float32(device: str) -> None:
    ema = Ema(network(1.0).bfloat16().to(device), 0.999)
    ema.update(network(2.0).bfloat16().to(device))
    weight = ema.module[0].weight
    assert weight.dtype == torch.float32
    # 1.001 has no bf16 neighbour: a bf16 average would have stayed at 1.
    torch.testing.assert_close(weight, torch.full_like(weight, 1.001), rtol=1e-6, atol=0)


def test_frozen_in_evaluation_mode_whatever_its_owner_does() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ema = Ema(network(), 0.9)

    owner = Owner().train()
    assert not any(module.training for module in owner.ema.modules())
    assert not any(parameter.requires_grad for parameter in owner.ema.parameters())


def test_state_dict_round_trip() -> None:
    ema = Ema(network(0.0), 0.5)
    ema.update(network(1.0))
    other = Ema(network(7.0), 0.5)
    other.load_state_dict(ema.state_dict())
    ema.update(network(3.0))
    other.update(network(3.0))
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), other.parameters(), strict=True))
    assert float(next(iter(other.parameters())).mean()) == pytest.approx(1.75)


def test_distance_is_relative() -> None:
    ema = Ema(network(2.0), 0.5)
    assert float(ema.distance(network(2.0))) == 0.0
    assert float(ema.distance(network(3.0))) == pytest.approx(0.5)


def test_bad_arguments_are_refused() -> None:
    for decay in (-0.1, 1.0):
        with pytest.raises(MusiccmError, match="decay"):
            Ema(network(), decay)
    with pytest.raises(MusiccmError, match="same parameters"):
        Ema(network(), 0.5).update(nn.Linear(2, 3))
