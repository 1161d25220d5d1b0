"""Token conditions through guidance, samplers and a cross-attention U-Net, against single unpadded items."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from gaussian import MUSICLDM
from tiny_bundle import make_unet

from musiccm.diffusion import (
    Condition,
    NoiseSchedule,
    cat_conditions,
    choose_condition,
    expand_condition,
    gives_tokens,
    pool_condition,
    scale_of,
    stack_conditions,
    told_scale,
    with_guidance,
    without_scale,
)
from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Denoiser
from musiccm.samplers import (
    Crops,
    Ddim,
    FrameNoise,
    SharedProcess,
    Stepper,
    Wavefront,
    sample_noise,
    sample_shared,
)

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
WIDTH = 8


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """A U-Net that attends to tokens, as TANGO's does, without class labels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=[8, 4], in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(1, 2), norm_num_groups=8,
    )
    return Denoiser(unet, SCHEDULE, "v_prediction").eval().requires_grad_(False)


def tokens(*lengths: int, seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    most = max(lengths)
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    return Condition(5 * torch.randn(len(lengths), most, WIDTH, generator=generator), mask)


def noisy(batch: int) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 4, generator=torch.Generator().manual_seed(1))


def test_padding_says_nothing_and_every_token_something(denoiser: Denoiser) -> None:
    z, t, cond = noisy(1), torch.tensor([500]), tokens(3)
    plain = denoiser(z, t, cond)
    torch.testing.assert_close(denoiser(z, t, cond.padded(7)), plain, rtol=1e-5, atol=1e-5)
    for place in range(3):
        changed = cond.tokens_BLD.clone()
        changed[:, place] += 3.0
        assert (denoiser(z, t, Condition(changed, cond.mask_BL)) - plain).abs().max() > 1e-4


def test_a_batch_of_unequal_lengths_is_each_alone(denoiser: Denoiser) -> None:
    z, t = noisy(2), torch.tensor([900, 300])
    parts = [tokens(2, seed=1), tokens(5, seed=2)]
    together = denoiser(z, t, cat_conditions(parts))
    for i, part in enumerate(parts):
        torch.testing.assert_close(together[i : i + 1], denoiser(z[i : i + 1], t[i : i + 1], part), rtol=1e-4,
                                   atol=1e-5)


def test_guidance_of_tokens_is_that_of_two_calls(denoiser: Denoiser) -> None:
    z, t, cond, null = noisy(2), torch.tensor([900, 300]), tokens(4, 2), tokens(1, seed=9)
    guided = with_guidance(denoiser, cond, null, 3.0)(z, t)
    empty = denoiser(z, t, expand_condition(null, 2))
    torch.testing.assert_close(guided, empty + 3.0 * (denoiser(z, t, cond) - empty), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_scales_0_1_and_2_and_one_an_item(denoiser: Denoiser, kind: str) -> None:
    """u, c and 2 c - u of a network with random weights; a batch of scales is one call a scale."""
    z, t = noisy(3), torch.tensor([900, 300, 50])
    if kind == "tokens":
        network, cond, null = denoiser, tokens(4, 2, 1), tokens(1, seed=9)
    else:
        torch.manual_seed(1)
        network = Denoiser(make_unet(), SCHEDULE, "epsilon").eval().requires_grad_(False)
        cond, null = torch.randn(4, 32).split([3, 1])
    c, u = network(z, t, cond), network(z, t, expand_condition(null, 3))
    assert (c - u).abs().max() > 1e-4
    one = {scale: with_guidance(network, cond, null, scale)(z, t) for scale in (0.0, 1.0, 2.0)}
    for scale, expected in ((0.0, u), (1.0, c), (2.0, 2 * c - u)):
        torch.testing.assert_close(one[scale], expected, rtol=1e-4, atol=1e-4)
    each = with_guidance(network, cond, null, torch.tensor([0.0, 1.0, 2.0]))(z, t)
    torch.testing.assert_close(each[0], one[0.0][0], rtol=0, atol=0)
    torch.testing.assert_close(each[1], one[1.0][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(each[2], one[2.0][2], rtol=0, atol=0)


def test_long_pieces_take_tokens_that_change_along_time(denoiser: Denoiser) -> None:
    texts = [tokens(2, seed=1)[0], tokens(5, seed=2)[0], tokens(3, seed=3)[0]]
    stepper = Stepper(denoiser, SCHEDULE, [999, 499], Ddim())

    def process() -> SharedProcess:
        return SharedProcess(stepper, Crops(16, 8, 4), FrameNoise(5, (4, 8, 4)), "uniform")

    whole = sample_shared(process(), texts.__getitem__, batch_size=3)
    torch.testing.assert_close(sample_shared(process(), texts.__getitem__, batch_size=1), whole, rtol=1e-4, atol=1e-4)
    front, parts = Wavefront(process(), texts.__getitem__), []
    while not front.finished:
        parts.append(front.tick())
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    alone = stepper.sample(stack_conditions(texts[:1]), sample_noise([5], (4, 8, 4)))
    short = SharedProcess(stepper, Crops(8, 8, 4), FrameNoise(5, (4, 8, 4)), "uniform")
    torch.testing.assert_close(sample_shared(short, texts.__getitem__), alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
def test_choosing_joins_and_indexes_item_by_item(pooled: bool) -> None:
    vector = torch.arange(6.0).reshape(2, 3) if pooled else None
    yes, plain = tokens(4, 2), tokens(1, seed=9)
    yes = Condition(yes.tokens_BLD, yes.mask_BL, vector)
    no = Condition(plain.tokens_BLD, plain.mask_BL, None if vector is None else -vector[:1])
    chosen = choose_condition(torch.tensor([True, False]), yes, no)
    assert isinstance(chosen, Condition) and chosen.mask_BL.sum(1).tolist() == [4, 1]
    assert torch.equal(chosen.tokens_BLD[0], yes.tokens_BLD[0])
    assert torch.equal(chosen.tokens_BLD[1, :1], no.tokens_BLD[0])
    if pooled:
        assert torch.equal(chosen.pooled_BD, torch.stack([vector[0], -vector[0]]))


def test_heads_that_take_a_vector_get_the_mean_of_the_tokens() -> None:
    cond = tokens(3, 1)
    cond.tokens_BLD[1, 1:] = float("nan")  # whatever stands under padding
    pooled = pool_condition(cond)
    for row, count in enumerate((3, 1)):
        mean = cond.tokens_BLD[row, :count].mean(0)
        torch.testing.assert_close(pooled[row], mean / mean.square().sum().sqrt())
    assert torch.equal(pool_condition(cond.padded(9)), pooled)
    vector = torch.arange(6.0).reshape(2, 3)
    assert pool_condition(Condition(cond.tokens_BLD, cond.mask_BL, vector)) is vector
    assert pool_condition(vector) is vector


def test_a_condition_goes_where_another_is() -> None:
    """As `tensor.to(other)`, so that samplers need not know which kind they have."""
    cond, other = tokens(3), Condition(*(part.to("meta") for part in (tokens(1).tokens_BLD.half(), tokens(1).mask_BL)))
    moved = cond.to(other)
    assert moved.device.type == "meta" and moved.mask_BL.device.type == "meta"
    assert (moved.tokens_BLD.dtype, moved.mask_BL.dtype) == (torch.float16, torch.bool)
    null, cond = Condition(tokens(1).tokens_BLD.double(), tokens(1).mask_BL), tokens(4, 2)
    assert choose_condition(torch.tensor([True, False]), null, cond).tokens_BLD.dtype == torch.float32


def test_clap_alone_gives_a_vector() -> None:
    given = {kind: gives_tokens({"model_type": kind}) for kind in ("clap", "clap_text_model", "t5", "bert")}
    assert given == {"clap": False, "clap_text_model": False, "t5": True, "bert": True} and not gives_tokens({})


def test_vectors_stay_plain_tensors() -> None:
    a, b = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cat_conditions([a, b]), torch.cat([a, b]))
    assert torch.equal(stack_conditions([a[0], b[1]]), torch.stack([a[0], b[1]]))
    chosen = choose_condition(torch.tensor([True, False]), a[:1], b)
    assert torch.equal(chosen, torch.stack([a[0], b[1]]))


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(MusiccmError, match="found a mix"):
        cat_conditions([torch.zeros(1, WIDTH), tokens(2)])
    with pytest.raises(MusiccmError, match="boolean mask of shape"):
        Condition(torch.zeros(1, 3, WIDTH), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(MusiccmError, match="boolean mask"):
        Condition(torch.zeros(1, 3, WIDTH), torch.ones(1, 3))


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_a_told_scale_goes_with_its_item(kind: str) -> None:
    scales = torch.tensor([0.5, 3.0, 6.0])
    plain = tokens(3, 1, 2) if kind == "tokens" else torch.arange(6.0).reshape(3, 2)
    told = told_scale(plain, scales)
    assert len(told) == 3 and torch.equal(scale_of(told), scales) and scale_of(plain) is None
    assert told[1].guidance_B == 3.0 and told[torch.tensor([2, 0])].guidance_B.tolist() == [6.0, 0.5]
    assert torch.equal(stack_conditions([told[2], told[1]]).guidance_B, scales[[2, 1]])
    assert torch.equal(cat_conditions([told[:1], told[1:]]).guidance_B, scales)
    assert expand_condition(told[2:], 4).guidance_B.tolist() == [6.0] * 4
    chosen = choose_condition(torch.tensor([True, False, True]), told, told_scale(plain, 1.0))
    assert chosen.guidance_B.tolist() == [0.5, 1.0, 6.0]
    assert told.padded(9).guidance_B is told.guidance_B and told_scale(told, 2.0).guidance_B.tolist() == [2.0] * 3
    moved = told.to("meta", torch.bfloat16)
    assert moved.device.type == "meta" == moved.guidance_B.device.type and moved.guidance_B.dtype == torch.float32
    assert told.to(torch.bfloat16).guidance_B is told.guidance_B
    back = without_scale(told)
    assert back is plain if kind == "vectors" else (back.tokens_BLD is plain.tokens_BLD and back.guidance_B is None)
    assert without_scale(plain) is plain
    assert torch.equal(pool_condition(told), pool_condition(plain))
    for untold in (plain, tokens(1)):
        with pytest.raises(MusiccmError, match="told a guidance scale or not.*found a mix"):
            cat_conditions([told, untold])


def test_scales_and_vectors_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(MusiccmError, match=r"a guidance scale an item, of shape \[3\], found \[2\]"):
        Condition(pooled_BD=torch.zeros(3, 2), guidance_B=torch.zeros(2))
    with pytest.raises(MusiccmError, match="expected tokens or vectors, found neither"):
        Condition(guidance_B=torch.zeros(2))
    with pytest.raises(MusiccmError, match="boolean mask of shape None, found torch.bool"):
        Condition(mask_BL=torch.ones(1, 2, dtype=torch.bool), pooled_BD=torch.zeros(1, 2))
