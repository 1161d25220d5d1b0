"""The U-Net that the dual-path network is compared with: its size, what it is told, and the denoiser contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musiccm.config import load_experiment
from musiccm.diffusion import Angle, Condition
from musiccm.errors import MusiccmError
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.models.melody.renderer_unet import RendererUNet
from musiccm.samplers import teacher_stepper

SMALL: dict[str, Any] = {"channels": 4, "widths": [32, 32], "attention": [1], "told_width": 8, "angle_width": 6,
                         "token_width": 5, "frames_per_token": 4, "frames": 32}


def make_network(**changed: Any) -> RendererUNet:
    """A small network whose last layer is not 0, as an untrained one's is."""
    network = RendererUNet(SMALL | changed).eval()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return network


def make_tokens(batch: int, count: int = 8) -> Condition:
    return Condition(torch.randn(batch, count, 5), torch.ones(batch, count, dtype=torch.bool))


def none_of(condition: Condition) -> Condition:
    assert condition.mask_BL is not None
    return Condition(condition.tokens_BLD, torch.zeros_like(condition.mask_BL))


def stage(name: str) -> dict[str, Any]:
    return load_experiment(f"melody/stages/{name}")


@pytest.mark.parametrize("width", [64, 256])
def test_it_is_as_large_as_the_dual_path_network(width: int) -> None:
    with torch.device("meta"):
        ours, its = (kind({**stage(name)["model"]["init_args"][key], "token_width": width}) for kind, name, key in
                     ((RendererUNet, "unet", "unet"), (DualPath, "dual_path", "dual_path")))
    mine, theirs = (sum(p.numel() for p in network.parameters()) for network in (ours, its))
    assert abs(mine / theirs - 1) < 0.02, f"{mine:,} against {theirs:,}: choose other widths in melody/stages/unet"


def test_its_stage_differs_from_the_dual_paths_in_the_network_alone() -> None:
    mine, theirs = stage("unet"), stage("dual_path")
    assert {key: value for key, value in mine.items() if key not in ("model", "experiment")} == {
        key: value for key, value in theirs.items() if key not in ("model", "experiment")}
    ours, its = mine["model"]["init_args"], theirs["model"]["init_args"]
    unet, dual_path = ours.pop("unet"), its.pop("dual_path")
    assert ours == its
    for key in ("channels", "frames", "frames_per_token", "angle_width"):
        assert unet[key] == dual_path[key], key


@torch.no_grad()
def test_frames_are_told_their_own_angle_and_token() -> None:
    network, z, cond = make_network(), torch.randn(2, 4, 32, 1), make_tokens(2)
    chunks = torch.tensor([[0.2, 1.1], [0.7, 0.3]])

    def v(angle: torch.Tensor, told: Condition = cond) -> torch.Tensor:
        return network(z, angle[:, 0], told.tokens_BLD, told.mask_BL, angle_BM=angle)[0]

    assert v(chunks).shape == z.shape and v(chunks).dtype == torch.float32
    torch.testing.assert_close(v(chunks), v(chunks.repeat_interleave(16, dim=1)))
    torch.testing.assert_close(v(chunks[:, :1]), network(z, chunks[:, 0], cond.tokens_BLD, cond.mask_BL)[0])
    assert not torch.allclose(v(chunks), v(chunks.flip(1)))
    # items apart: the norms are over a clip, not over a batch
    alone = network(z[1:], chunks[1:, 0], cond.tokens_BLD[1:], cond.mask_BL[1:], angle_BM=chunks[1:])[0]  # type: ignore
    torch.testing.assert_close(v(chunks)[1:], alone)
    # the order of the tokens counts; what stands under a mask does not, nor how much of it there is
    swapped = Condition(cond.tokens_BLD.flip(1), cond.mask_BL)  # type: ignore[union-attr]
    assert not torch.allclose(v(chunks, swapped), v(chunks))
    one = Condition(torch.full((2, 1, 5), float("nan")), torch.zeros(2, 1, dtype=torch.bool))
    torch.testing.assert_close(v(chunks, none_of(cond)), v(chunks, one))
    assert not torch.allclose(v(chunks, one), v(chunks))


@torch.no_grad()
def test_it_is_sampled_through_the_denoiser_contract(tmp_path: Path) -> None:
    make_network().save_pretrained(tmp_path)
    network = RendererUNet.from_pretrained(tmp_path)
    denoise = FrameDenoiser(network, Angle(), "v_prediction")  # type: ignore[arg-type]
    z, cond, t = torch.randn(1, 4, 32, 1), make_tokens(1), torch.tensor([499])
    # at t = 499 the angle is pi / 4, where x0 = (z - v) / sqrt 2
    (v,) = network(z, torch.tensor([torch.pi / 4]), cond.tokens_BLD, cond.mask_BL)
    torch.testing.assert_close(denoise(z, t, cond), (z - v) / 2**0.5, rtol=1e-4, atol=1e-5)
    held = torch.arange(32)[None] < 16
    made = denoise(z, t, cond, held_BT=held)
    assert torch.equal(made[:, :, :16], z[:, :, :16])
    assert not torch.allclose(made[:, :, 16:], denoise(z, t, cond)[:, :, 16:]), "it is told that they are clean"
    stepper = teacher_stepper(denoise, Angle(), lambda n: none_of(make_tokens(n)), 3, 2.5)
    sampled = stepper.sample(cond, z, None)
    assert sampled.shape == z.shape and torch.isfinite(sampled).all()


@pytest.mark.parametrize(("changed", "message"), [
    ({"widths": [48, 32]}, "widths: expected multiples of 32 where there is attention, found 48 at level 0"),
    ({"attention": [0]}, "attention: expected levels from 1 to 1, found 0"),
    ({"frames": 30}, "a multiple of 4 latent frames above 6, .* found 30"),
    ({"told_width": 0}, "told_width: expected a number above 0, found 0"),
    ({"widths": []}, r"widths: expected numbers above 0, found \[\]")])
def test_sizes_that_do_not_go_together_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        RendererUNet(SMALL | changed)


def test_latents_and_conditions_of_others_are_refused() -> None:
    network, cond = make_network(), make_tokens(1)
    for z, told, message in (
        (torch.randn(1, 3, 32, 1), cond, "latents of 4 channels and one bin"),
        (torch.randn(1, 4, 31, 1), cond, "a multiple of 4 latent frames"),
        (torch.randn(1, 4, 32, 1), Condition(torch.randn(1, 8, 6), cond.mask_BL), "token vectors of width 5, found 6"),
        (torch.randn(1, 4, 32, 1), Condition(pooled_BD=torch.randn(1, 5)), "expected a condition of semantic tokens"),
    ):
        with pytest.raises(MusiccmError, match=message):
            network(z, torch.tensor([0.3]), told.tokens_BLD, told.mask_BL)
    with pytest.raises(MusiccmError, match="renderer U-Net: 32 latent frames need 8 semantic tokens, .* found 7"):
        network.check_condition(make_tokens(1, 7), 32)
