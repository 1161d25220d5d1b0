"""Adapters: what a known update does, what is shared, what is averaged."""

from __future__ import annotations

import pytest
import torch
from tiny_bundle import SCHEDULER, make_unet
from torch import nn

from musiccm.diffusion import NoiseSchedule
from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Denoiser
from musiccm.models.ema import Ema
from musiccm.models.lora import Lora, is_adapter, load_adapter, merged, with_adapter


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 4, 6)).double()


def factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def test_an_adapter_of_full_rank_can_make_any_update() -> None:
    """A = V^T, B = U S of the update's singular value decomposition; with alpha = 2 rank half of it."""
    plain, x = layers(), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    before = plain(x)
    updates = [torch.randn(5, 3 * 9, dtype=torch.float64), torch.randn(6, 80, dtype=torch.float64)]
    adapted = with_adapter(plain, Lora(6, 12.0, ["0", "2"])).double()
    assert torch.equal(adapted(x), before), "B is zero at the start"
    for index, update in zip((0, 2), updates, strict=True):
        u, s, v = torch.linalg.svd(update / 2, full_matrices=False)
        a, b = factors(adapted[index])
        with torch.no_grad():
            a.zero_()[: len(v)] = v.view(len(v), *a.shape[1:])
            b.zero_()[:, : len(s)] = (u * s).view(-1, len(s), *b.shape[2:])
    with torch.no_grad():
        expected = layers()
        expected[0].weight += updates[0].view(5, 3, 3, 3)
        expected[2].weight += updates[1]
    torch.testing.assert_close(adapted(x), expected(x), rtol=1e-10, atol=1e-10)
    alone = merged(adapted)
    torch.testing.assert_close(alone(x), expected(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dict(alone.state_dict()), dict(expected.state_dict()), rtol=1e-10, atol=1e-10)
    assert torch.equal(plain(x), before), "the shared weights stay as they are"


def test_the_average_is_that_of_the_factors_and_not_of_their_product() -> None:
    adapted = with_adapter(layers(), Lora(2, 2.0, ["2"])).double()
    shared = [p for p in adapted.parameters() if not p.requires_grad]
    ema = Ema(adapted.float(), 0.75, shared)
    a, b = factors(adapted[2])
    averaged, product = [a.detach().clone(), b.detach().clone()], b.detach() @ a.detach()
    for _ in range(3):
        with torch.no_grad():
            a.add_(torch.randn_like(a))
            b.add_(torch.randn_like(b))
        ema.update(adapted)
        averaged = [0.75 * old + 0.25 * new for old, new in zip(averaged, (a, b), strict=True)]
        product = 0.75 * product + 0.25 * b @ a
    mine = factors(ema.module[2])
    for found, expected in zip(mine, averaged, strict=True):
        torch.testing.assert_close(found, expected)
    assert (mine[1] @ mine[0] - product).norm() > 0.1 * product.norm()
    own = {id(p) for p in ema.module.parameters()} - {id(p) for p in shared}
    assert len(own) == 2, "all else is the network's own"
    moved = torch.cat([(x - y).flatten() for x, y in zip((a, b), mine, strict=True)]).norm()
    assert float(ema.distance(adapted)) == pytest.approx(float(moved / torch.cat([m.flatten() for m in mine]).norm()))


def test_a_unet_with_an_adapter_merges_into_a_plain_one_and_ends_in_float32() -> None:
    denoiser = Denoiser(make_unet().eval(), NoiseSchedule.from_config(SCHEDULER), "epsilon")
    adapted = Denoiser(with_adapter(denoiser.unet, Lora(4, 8.0)), denoiser.schedule, "epsilon")
    for name, parameter in adapted.unet.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.05)
    z, t, cond = torch.randn(2, 4, 8, 4), torch.tensor([19, 999]), torch.randn(2, 32)
    unet = merged(adapted.unet)
    assert unet.state_dict().keys() == denoiser.unet.state_dict().keys()
    assert not {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in denoiser.unet.parameters()}
    with torch.no_grad():
        found, expected = (Denoiser(net, denoiser.schedule, "epsilon").output(z, t, cond)
                           for net in (unet, adapted.unet))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (expected - denoiser.output(z, t, cond)).abs().max() > 0.01
        # the last layer, adapter included, is not rounded to bf16
        seen: list[torch.dtype] = []
        last = adapted.unet.conv_out
        last.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        last.lora_B["default"].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            adapted.output(z, t, cond)
    assert seen == [torch.float32] * 2


def test_the_draws_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (factors(with_adapter(layers(), Lora(2, 2.0, ["2"]), seed)[2])[0] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    layers()
    assert not torch.equal(torch.get_rng_state(), state), "layers() itself draws"
    plain = layers()
    state = torch.get_rng_state()
    with_adapter(plain, Lora(2, 2.0, ["2"]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("names", [["nothing"], ["1"]])
def test_layers_that_cannot_have_one_are_named(names: list[str]) -> None:
    with pytest.raises(MusiccmError, match=rf"distillation.lora.target_modules: expected .* found \['{names[0]}'\]"):
        with_adapter(layers(), Lora(2, 2.0, names), where="distillation.lora")


def test_an_adapter_of_another_shape_is_refused() -> None:
    adapted, other = (with_adapter(layers(), Lora(rank, 2.0, ["2"])) for rank in (2, 3))
    state = {name: value for name, value in other.state_dict().items() if is_adapter(name)}
    with pytest.raises(MusiccmError, match="adapter: 2 weights .* rank and target_modules"):
        load_adapter(adapted, state)
    with pytest.raises(MusiccmError, match="adapter: 2 weights"):
        load_adapter(adapted, {})
