"""The dual-path network: segments, recurrence, conditions, angles, sizes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musiccm.config import load_experiment
from musiccm.diffusion import Angle, Condition, angle_timesteps, cat_conditions
from musiccm.errors import MusiccmError
from musiccm.models.melody.coarse_path import Turns
from musiccm.models.melody.dual_path import DualPath, DualPathConfig
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.models.melody.recurrence import BidirectionalSRU, linear_recurrence
from musiccm.models.melody.segments import add_segments, cut_segments, segment_count

SMALL: dict[str, Any] = {
    "channels": 4, "width": 16, "merged": [8, 2], "segment": 8, "heads": 2, "coarse_layers": 1, "feed_forward": 16,
    "fine_layers": 2, "recurrent_width": 8, "angle_width": 8, "token_width": 6, "frames_per_token": 5, "frames": 40}


def make_network(**changed: Any) -> DualPath:
    """A small network whose last layer is not 0, as an untrained one's is."""
    network = DualPath(SMALL | changed).eval()
    with torch.no_grad():
        network.out.weight.normal_(std=0.3)
        network.out.bias.normal_(std=0.3)
    return network


def make_tokens(batch: int, count: int, width: int = 6) -> Condition:
    return Condition(torch.randn(batch, count, width), torch.ones(batch, count, dtype=torch.bool))


def none_of(condition: Condition) -> Condition:
    assert condition.mask_BL is not None
    return dataclasses.replace(condition, mask_BL=torch.zeros_like(condition.mask_BL))


def velocity(network: DualPath, z: Tensor, angle: Tensor, cond: Condition) -> Tensor:
    with torch.no_grad():
        return FrameDenoiser(network, Angle(), "v_prediction").velocity(z, angle, cond)


def test_every_frame_lies_in_two_segments_one_in_each_half() -> None:
    for size in (2, 8, 64):
        for frames in (1, 2, 7, 31, 32, 33, 63, 64, 65, 96, 1280, 2500):
            number = torch.arange(1.0, frames + 1)[None, :, None]
            cut = cut_segments(number, size)
            assert cut.shape == (size, 1, segment_count(frames, size), 1)
            for half in cut.split(size // 2):  # in each half, every frame once and in order, the rest zeros
                assert half[:, 0, :, 0].T.flatten()[half[:, 0, :, 0].T.flatten() > 0].tolist() == list(
                    range(1, frames + 1))
            x = torch.randn(2, frames, 3)
            assert torch.equal(add_segments(cut_segments(x, size), frames), 2 * x)
    # MeLoDy: ten seconds are 80 segments of 64 frames
    assert segment_count(2500, 64) == 80


def test_segments_start_half_a_segment_apart() -> None:
    x = torch.randn(1, 20, 2)
    cut = cut_segments(x, 8)
    padded = torch.cat([torch.zeros(1, 4, 2), x, torch.zeros(1, 4, 2)], dim=1)
    for s in range(cut.shape[2]):
        assert torch.equal(cut[:, 0, s], padded[0, 4 * s : 4 * s + 8])


def test_the_recurrence_is_the_sum_of_what_is_kept() -> None:
    keep, new = torch.rand(7, 3, 2, dtype=torch.float64), torch.randn(7, 3, 2, dtype=torch.float64)
    for k in range(7):
        expected = sum(keep[j + 1 : k + 1].prod(0) * new[j] for j in range(k + 1))
        torch.testing.assert_close(linear_recurrence(keep, new)[k], expected)
        expected = sum(keep[k:j].prod(0) * new[j] for j in range(k, 7))
        torch.testing.assert_close(linear_recurrence(keep, new, backwards=True)[k], expected)


@pytest.mark.parametrize("inputs", [3, 6])
def test_the_recurrent_unit_is_the_papers_in_both_directions(inputs: int) -> None:
    unit = BidirectionalSRU(inputs, 3, memory=8).double()
    x = torch.randn(6, 2, inputs, dtype=torch.float64)
    found = unit(x)
    weight, bias = unit.gates.weight, unit.gates.bias
    for direction in range(2):
        rows = [slice(part * 6 + direction * 3, part * 6 + direction * 3 + 3) for part in range(3)]
        own = x if inputs == 3 else x[..., direction * 3 : direction * 3 + 3]
        state = torch.zeros(2, 3, dtype=torch.float64)
        for k in range(6) if direction == 0 else reversed(range(6)):
            candidate, forget, reset = (x[k] @ weight[row].T + bias[row] for row in rows)
            f, r = torch.sigmoid(forget), torch.sigmoid(reset)
            state = f * state + (1 - f) * candidate
            torch.testing.assert_close(found[k, :, direction * 3 : direction * 3 + 3], r * state + (1 - r) * own[k])


def test_rotary_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 8, dtype=torch.float64).unbind(0)

    def product(i: float, j: float) -> Tensor:
        return Turns.at(torch.tensor([i]), 8).apply(query) @ Turns.at(torch.tensor([j]), 8).apply(key).T

    torch.testing.assert_close(product(5.0, 2.5), product(13.0, 10.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(product(3.0, 3.0), query @ key.T, atol=1e-5, rtol=0)
    assert not torch.allclose(product(5.0, 2.5), product(5.0, 4.5), atol=1e-3)


def test_an_item_depends_neither_on_its_batch_nor_on_padding() -> None:
    network, z, cond = make_network(), torch.randn(3, 4, 40, 1), make_tokens(3, 8)
    angle = torch.rand(3, 4) * math.pi / 2
    together = velocity(network, z, angle, cond)
    assert together.std() > 0.05
    for i in range(3):
        alone = velocity(network, z[i : i + 1], angle[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)
    padded = cond.padded(13)
    padded.tokens_BLD[:, 8:] = float("nan")  # what stands under the mask gets nowhere
    torch.testing.assert_close(velocity(network, z, angle, padded), together, atol=1e-5, rtol=0)


def test_without_tokens_nothing_of_them_is_left() -> None:
    network, z, cond = make_network(), torch.randn(2, 4, 40, 1), make_tokens(2, 8)
    angle = torch.full((2, 1), 0.8)
    null = velocity(network, z, angle, none_of(cond))
    torch.testing.assert_close(velocity(network, z, angle, none_of(make_tokens(2, 1))), null, atol=1e-5, rtol=0)
    assert (velocity(network, z, angle, cond) - null).abs().max() > 1e-3
    # a guided call's pair
    both = velocity(network, torch.cat([z, z]), torch.cat([angle, angle]), cat_conditions([cond, none_of(cond)]))
    torch.testing.assert_close(both[2:], null, atol=1e-5, rtol=0)
    # it is as if the network had neither cross-attention nor the mean of the tokens
    for block in network.blocks:
        for layer in block.coarse:
            torch.nn.init.zeros_(layer.cross_out.weight)
    for layer in (network.tokens[0], network.tokens[3]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(velocity(network, z, angle, cond), null, atol=1e-5, rtol=0)


def test_tokens_have_places() -> None:
    """With the mean out of it, another order of the tokens is told by their positions alone."""
    network, z, cond = make_network(merged=[8]), torch.randn(1, 4, 40, 1), make_tokens(1, 8)
    angle = torch.full((1, 1), 0.8)
    swapped = Condition(cond.tokens_BLD.flip(1), cond.mask_BL)
    assert (velocity(network, z, angle, cond) - velocity(network, z, angle, swapped)).abs().max() > 1e-4


def test_angles_of_chunks_are_those_of_their_frames_and_one_for_all_is_the_timestep() -> None:
    network, z, cond = make_network(), torch.randn(2, 4, 40, 1), make_tokens(2, 8)
    of_chunks = torch.rand(2, 4) * math.pi / 2
    torch.testing.assert_close(velocity(network, z, of_chunks, cond),
                               velocity(network, z, of_chunks.repeat_interleave(10, dim=1), cond), atol=1e-5, rtol=0)
    denoiser, t = FrameDenoiser(network, Angle(), "v_prediction"), torch.tensor([249.0, 999.0])
    with torch.no_grad():
        usual = denoiser.output(z, t, cond)
    torch.testing.assert_close(velocity(network, z, torch.tensor([[math.pi / 8], [math.pi / 2]]), cond), usual,
                               atol=1e-5, rtol=0)
    # every frame's angle is told
    other = of_chunks.clone()
    other[:, 3] += 0.3
    assert (velocity(network, z, other, cond) - velocity(network, z, of_chunks, cond)).abs().max() > 1e-3


def test_held_frames_come_back_bit_by_bit_and_the_others_are_rotated() -> None:
    network, z, cond = make_network(), torch.randn(2, 4, 40, 1), make_tokens(2, 8)
    held = torch.zeros(2, 40, dtype=torch.bool)
    held[:, :30] = True
    t = torch.tensor(angle_timesteps(Angle(), 10, "proposed")[3]).expand(2)
    d = float(Angle().network_time(t)[0])
    with torch.no_grad():
        found = FrameDenoiser(network, Angle(), "v_prediction")(z, t, cond, held_BT=held)
    assert torch.equal(found[:, :, :30], z[:, :, :30])
    angle = torch.where(held, 0.0, d)
    v = velocity(network, z, angle, cond)
    torch.testing.assert_close(found[:, :, 30:], (math.cos(d) * z - math.sin(d) * v)[:, :, 30:], atol=1e-5, rtol=0)


def test_a_chunk_at_angle_zero_is_its_own_clean_estimate() -> None:
    """By the identity `x0 = cos(0) z - sin(0) v`, whatever the network says."""
    network, z, cond = make_network(), torch.randn(1, 4, 40, 1), make_tokens(1, 8)
    angle = torch.tensor([[0.0, 0.9, 0.0, 1.5]])
    v = velocity(network, z, angle, cond)
    frames = angle.repeat_interleave(10, dim=1)[:, None, :, None]
    x0 = torch.cos(frames) * z - torch.sin(frames) * v
    still = (frames == 0).expand_as(z)
    assert torch.equal(x0[still], z[still]) and not torch.equal(x0[~still], z[~still])


def test_all_weights_get_gradients_in_bf16_too() -> None:
    for autocast in (False, True):
        network, cond = make_network(), make_tokens(2, 8)
        z = torch.randn(2, 4, 40, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            (v,) = network(z, torch.tensor([0.3, 1.2]), cond.tokens_BLD, cond.mask_BL)
        assert v.dtype == torch.float32
        v.square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_weights_in_bf16_give_about_the_same() -> None:
    network, z, cond = make_network(), torch.randn(2, 4, 40, 1), make_tokens(2, 8)
    angle = torch.tensor([[0.4], [1.3]])
    expected = velocity(network, z, angle, cond)
    found = velocity(network.to(torch.bfloat16), z, angle, cond)
    assert found.dtype == torch.float32 and (found - expected).norm() < 0.05 * expected.norm()


def test_written_and_read_again(tmp_path: Path) -> None:
    network, z, cond = make_network(), torch.randn(1, 4, 40, 1), make_tokens(1, 8)
    network.save_pretrained(tmp_path)
    again = DualPath.from_pretrained(tmp_path)
    assert again.shape == network.shape and not again.training
    angle = torch.full((1, 1), 0.8)
    assert torch.equal(velocity(again, z, angle, cond), velocity(network, z, angle, cond))


def test_sizes_of_both_experiments() -> None:
    """The paper's 296.6 M, as far as its numbers are published, and a twentieth of a hundred million."""
    with torch.device("meta"):
        for name, millions, width in (("melody/dual_path", 294.9, 1024), ("melody/stages/dual_path", 5.0, 64)):
            # vectors of the tokenizer's default source
            shape = load_experiment(name)["model"]["init_args"]["dual_path"] | {"token_width": width}
            network = DualPath(shape)
            assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
            frames, tokens = shape["frames"], shape["frames"] // shape["frames_per_token"]
            z = torch.empty(2, shape["channels"], frames, 1)
            (v,) = network(z, torch.empty(2), torch.empty(2, tokens, shape["token_width"]),
                           torch.empty(2, tokens, dtype=torch.bool), angle_BM=torch.empty(2, 4))
            assert v.shape == z.shape and v.is_meta
            v.sum().backward()  # every shape of the way back
            assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
        assert abs(294.9 / 296.6 - 1) < 0.01
        assert sum(p.numel() for p in DualPath(DualPathConfig()).parameters()) / 1e6 == pytest.approx(294.9, abs=0.06)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"merged": [3]}, "merged: expected divisors of segment"),
        ({"merged": []}, "merged: expected numbers above 0"),
        ({"segment": 7, "merged": [7]}, "which must be even"),
        ({"heads": 3}, "heads: expected heads of an even width"),
        ({"recurrent_width": 5}, "recurrent_width: expected the even width 16 or half of it"),
        ({"channels": 0}, "channels: expected a whole number above 0"),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        DualPath(SMALL | changed)


def test_conditions_that_do_not_fit_are_refused() -> None:
    network, z = make_network(), torch.randn(2, 4, 40, 1)
    with pytest.raises(MusiccmError, match="40 latent frames need 8 semantic tokens.*found 7"):
        network.check_condition(make_tokens(2, 7), 40)
    with pytest.raises(MusiccmError, match="width 6, found 5; the semantic tokenizer is another one"):
        network.check_condition(make_tokens(2, 8, 5), 40)
    with pytest.raises(MusiccmError, match="found one without tokens"):
        network.check_condition(torch.zeros(2, 6), 40)
    network.check_condition(none_of(make_tokens(2, 3)), 40)
    angle = torch.full((2, 1), 0.8)
    with pytest.raises(MusiccmError, match="width 6, found 5"):
        velocity(network, z, angle, make_tokens(2, 8, 5))
    with pytest.raises(MusiccmError, match="4 channels and one bin, found shape"):
        velocity(network, z.transpose(1, 2), angle, make_tokens(2, 8))
    with pytest.raises(MusiccmError, match="semantic tokens and no vector"):
        FrameDenoiser(network, Angle(), "v_prediction")(z, torch.tensor([9, 9]), torch.zeros(2, 6))
    held = torch.zeros(2, 40, dtype=torch.bool)
    with pytest.raises(MusiccmError, match="one time that predicts v"):
        FrameDenoiser(network, Angle(), "sample")(z, torch.tensor([9, 9]), make_tokens(2, 8), held_BT=held)
