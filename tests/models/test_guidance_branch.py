"""The guidance branch against a re-statement of its formula, at the published sizes, and through files and averages."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from tiny_bundle import SCHEDULER, make_unet
from tiny_tokens import WIDTH, make_token_unet
from torch import nn

from musiccm.config import load_experiment
from musiccm.diffusion import Condition, NoiseSchedule, told_scale
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import load_part, save_part
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.models.ema import Ema
from musiccm.models.encoder_half import encoder_half
from musiccm.models.guidance_branch import GuidedUNet2DConditionModel, is_branch, with_guidance_branch

SCHEDULE = NoiseSchedule.from_config(SCHEDULER)
Z, T = torch.randn(3, 4, 8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 500, 19])
SCALES = torch.tensor([0.0, 2.5, 6.0])


def vectors() -> torch.Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def tokens() -> Condition:
    mask = torch.arange(4) < torch.tensor([4, 1, 3])[:, None]
    return Condition(torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(2)), mask)


KINDS = {"vectors": (make_unet, vectors), "tokens": (lambda: make_token_unet(8), tokens)}


def branched(kind: str) -> tuple[UNet2DConditionModel, GuidedUNet2DConditionModel]:
    """A U-Net, and the same with a branch that has learnt something."""
    torch.manual_seed(0)
    plain = KINDS[kind][0]().eval().requires_grad_(False)
    network = with_guidance_branch(plain, 3, "here").requires_grad_(False)
    with torch.no_grad():
        network.guidance_embedding.linear_2.weight.normal_(0, 0.3)
        network.guidance_embedding.linear_2.bias.normal_(0, 0.3)
    return plain, network


@pytest.mark.parametrize(("name", "branch", "expected"), [
    ("unet_light", False, 557_109_964), ("unet_tango", False, 865_933_768), ("unet_light", True, 559_209_676)])
def test_the_published_numbers_of_parameters(name: str, branch: bool, expected: int) -> None:
    """As their files hold them: the branch's frequencies are saved too, though they are never trained."""
    config = load_experiment(f"tta/{name}")["model"]["init_args"]["unet"]
    with torch.device("meta"):
        unet = (GuidedUNet2DConditionModel(**config, addition_embed_type="guidance") if branch
                else UNet2DConditionModel(**config))
    assert sum(value.numel() for value in unet.state_dict().values()) == expected
    own = {key: tuple(value.shape) for key, value in unet.state_dict().items() if is_branch(key)}
    assert not branch or own == {
        "guidance_proj.weight": (512,), "guidance_embedding.linear_1.weight": (1024, 1024),
        "guidance_embedding.linear_1.bias": (1024,), "guidance_embedding.linear_2.weight": (1024, 1024),
        "guidance_embedding.linear_2.bias": (1024,)}
    if name == "unet_light":  # the number of heads is stated, and 256 / 5 is not whole
        inner = [block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape for block in unet.down_blocks[:3]]
        assert inner == [(255, 255), (510, 510), (1020, 1020)]
        assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.shape == (255, 1024)


@pytest.mark.slow
def test_the_light_network_answers_as_diffusers_does() -> None:
    """At its full size, with random weights and heads that do not divide its channels; 5 GB."""
    plain = UNet2DConditionModel(**load_experiment("tta/unet_light")["model"]["init_args"]["unet"]).eval()
    generator = torch.Generator().manual_seed(4)
    z, t = torch.randn(2, 8, 16, 8, generator=generator), torch.tensor([999, 58])
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    cond = Condition(torch.randn(2, 5, 1024, generator=generator), mask)
    network = with_guidance_branch(plain, 0, "here")
    names = {name for name in network.state_dict() if not is_branch(name)}
    assert names == set(plain.state_dict())
    with torch.no_grad():
        theirs = plain(z, t, encoder_hidden_states=cond.tokens_BLD, encoder_attention_mask=cond.mask_BL).sample
        ours = Denoiser(network, SCHEDULE, "v_prediction").output(z, t, told_scale(cond, 4.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_to_the_embedding_of_the_time(kind: str) -> None:
    plain, network = branched(kind)
    cond = KINDS[kind][1]()
    weights = {name: value.double() for name, value in network.state_dict().items() if is_branch(name)}
    phase = 2 * math.pi * SCALES.double()[:, None] * weights["guidance_proj.weight"]
    hidden = torch.cat([phase.cos(), phase.sin()], 1) @ weights["guidance_embedding.linear_1.weight"].T
    hidden = hidden + weights["guidance_embedding.linear_1.bias"]
    hidden = hidden * torch.sigmoid(hidden)
    added = hidden @ weights["guidance_embedding.linear_2.weight"].T + weights["guidance_embedding.linear_2.bias"]
    assert added.std() > 0.1
    ours = Denoiser(network, SCHEDULE, "v_prediction")(Z, T, told_scale(cond, SCALES))
    without = Denoiser(plain, SCHEDULE, "v_prediction")
    untouched = without(Z, T, cond)
    handle = plain.time_embedding.register_forward_hook(lambda module, inputs, output: output + added.float())
    torch.testing.assert_close(ours, without(Z, T, cond), rtol=1e-4, atol=1e-5)
    handle.remove()
    assert (ours - untouched).abs().amax((1, 2, 3)).min() > 1e-4, "each item has its scale"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_branch_changes_nothing_and_learns(kind: str) -> None:
    torch.manual_seed(0)
    plain = KINDS[kind][0]().eval()
    network, cond = with_guidance_branch(plain, 3, "here"), KINDS[kind][1]()
    with torch.no_grad():
        expected = Denoiser(plain, SCHEDULE, "v_prediction")(Z, T, cond)
        for scale in (0.0, 3.0, SCALES):
            assert torch.equal(Denoiser(network, SCHEDULE, "v_prediction")(Z, T, told_scale(cond, scale)), expected)
        half = Denoiser(encoder_half(network), SCHEDULE, "v_prediction").output(Z, T, told_scale(cond, SCALES))
        assert torch.equal(half, Denoiser(encoder_half(plain), SCHEDULE, "v_prediction").output(Z, T, cond))
    again = with_guidance_branch(plain, 3, "here").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())
    network.requires_grad_(True)
    assert not any(name.startswith("guidance_proj") for name, _ in network.named_parameters()), "never trained"
    f = Consistency(Denoiser(network, SCHEDULE, "v_prediction"))
    f(Z, T, told_scale(cond, SCALES)).square().mean().backward()
    assert network.guidance_embedding.linear_2.weight.grad.abs().max() > 0
    shared = {value.data_ptr() for value in plain.state_dict().values()}
    assert shared.isdisjoint(value.data_ptr() for value in network.state_dict().values())


def test_files_averages_and_copies_hold_the_branch_and_its_frequencies_in_full(tmp_path: Path) -> None:
    _, network = branched("vectors")
    cond = told_scale(vectors(), SCALES)
    expected = Denoiser(network, SCHEDULE, "v_prediction")(Z, T, cond)
    for dtype, tolerance in ((None, 0.0), (torch.float16, 2e-2)):
        save_part(tmp_path, "unet", network, dtype)
        read = load_part(tmp_path, "unet")
        assert isinstance(read, GuidedUNet2DConditionModel)
        assert torch.equal(read.guidance_proj.weight, network.guidance_proj.weight), "in half it would be lost"
        found = Denoiser(read, SCHEDULE, "v_prediction")(Z, T, cond)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    ema = Ema(with_guidance_branch(make_unet(), 9, "here"), 0.5)
    other = copy.deepcopy(network).requires_grad_(True)
    ema.update(other)
    assert torch.equal(ema.module.guidance_proj.weight, network.guidance_proj.weight)
    torch.testing.assert_close(ema.module.guidance_embedding.linear_2.weight,
                               0.5 * network.guidance_embedding.linear_2.weight)
    assert other.bfloat16().guidance_proj.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="`addition_embed_type`: guidance must be None, 'text'"):
        UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    with pytest.raises(ValueError, match="`diffusers` has no class `GuidedUNet2DConditionModel`"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_a_bf16_network_is_told_its_scale_in_float32() -> None:
    _, network = branched("vectors")
    given: list[torch.Tensor] = []
    network.guidance_proj.register_forward_hook(lambda module, inputs, output: given.extend([inputs[0], output]))
    denoiser = Denoiser(network.bfloat16(), SCHEDULE, "v_prediction")
    assert denoiser(Z, T, told_scale(vectors(), SCALES + 0.001)).dtype == torch.float32
    assert torch.equal(given[0], SCALES + 0.001) and given[1].dtype == torch.float32


def test_a_scale_and_a_branch_need_each_other() -> None:
    plain, network = branched("vectors")
    with pytest.raises(MusiccmError, match="guidance_scale: found one .* takes none; expected a U"):
        Denoiser(plain, SCHEDULE, "v_prediction")(Z, T, told_scale(vectors(), 3.0))
    for cond in (vectors(), tokens()):
        with pytest.raises(MusiccmError, match=r"guidance_scale: found none .* told_scale\(condition, scale\)"):
            Denoiser(network, SCHEDULE, "v_prediction")(Z, T, cond)


def test_a_unet_with_something_else_in_its_place_is_refused() -> None:
    config = {key: value for key, value in make_token_unet(8).config.items() if not key.startswith("_")}
    unet: nn.Module = UNet2DConditionModel(**{**config, "addition_embed_type": "text"})
    with pytest.raises(MusiccmError, match="here: expected a U-Net without addition_embed_type, .* found 'text'"):
        with_guidance_branch(unet, 0, "here")
