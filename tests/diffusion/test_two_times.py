"""Denoisers of two times on Gaussian data, where the jump between any two is known."""

from __future__ import annotations

import pytest
import torch
from gaussian import MUSICLDM, Gaussian
from torch import Tensor

from musiccm.diffusion import (
    Angle,
    NoiseProcess,
    NoiseSchedule,
    RectifiedFlow,
    ddim_jump,
    jump_between,
    predict_at,
    with_guidance,
)

PROCESSES = {"table": NoiseSchedule.from_config(MUSICLDM), "flow": RectifiedFlow(1000), "angle": Angle()}


@pytest.fixture(params=PROCESSES)
def data(request: pytest.FixtureRequest) -> Gaussian:
    return Gaussian(PROCESSES[request.param])


def draws(process: NoiseProcess, *t: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(len(t), 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z, torch.tensor(t)


def bound(data: Gaussian):
    return lambda z, t, s: data.between(z, t, None, s)


def test_one_jump_lands_where_the_flow_is(data: Gaussian) -> None:
    z, t_B = draws(data.schedule, 900, 700, 500, 60)
    s_B = torch.tensor([20, 0, 499, 3])
    torch.testing.assert_close(jump_between(bound(data), data.schedule, z, t_B, s_B), data.flow(z, t_B, s_B),
                               rtol=1e-8, atol=1e-8)


def test_it_is_what_many_small_steps_of_the_denoiser_come_to(data: Gaussian) -> None:
    """Independent of the closed form of the jump: DDIM's 600 steps of one timestep, by the posterior mean alone."""
    z, t_B = draws(data.schedule, 800, 800)
    walked, t = z, t_B
    for _ in range(600):
        walked = ddim_jump(data.schedule, *predict_at(data.x0, data.schedule, walked, t), t - 1)
        t = t - 1
    once = jump_between(bound(data), data.schedule, z, t_B, t)
    assert float((once - walked).abs().max()) < 5e-3 < float((once - z).abs().max())


def test_two_jumps_are_one(data: Gaussian) -> None:
    z, t_B = draws(data.schedule, 950, 400)
    u_B, s_B = torch.tensor([600, 399]), torch.tensor([100, 0])
    half = jump_between(bound(data), data.schedule, z, t_B, u_B)
    torch.testing.assert_close(jump_between(bound(data), data.schedule, half, u_B, s_B),
                               jump_between(bound(data), data.schedule, z, t_B, s_B), rtol=1e-8, atol=1e-8)


def test_its_ends_are_the_consistency_function_and_the_denoiser(data: Gaussian) -> None:
    z, t_B = draws(data.schedule, 900, 300)
    torch.testing.assert_close(data.between(z, t_B, None, torch.zeros_like(t_B)), data.f(z, t_B), rtol=1e-9, atol=1e-9)
    near = (data.between(z, t_B, None, t_B - 1) - data.x0(z, t_B)).abs().max()
    nearer = (data.between(z, t_B.double(), None, t_B - 0.25) - data.x0(z, t_B)).abs().max()
    assert float(near) < 5e-3 and float(nearer) < 0.3 * float(near)


def test_under_a_rectified_flow_it_is_the_average_velocity() -> None:
    """MeanFlow's u = (z_t - z_s) / (t - s), here by the trapezoid rule over the velocity along the exact path."""
    process = RectifiedFlow(1000)
    data = Gaussian(process)
    z, t_B = draws(process, 800)
    s_B = torch.tensor([200])
    grid = torch.linspace(200, 800, 2001, dtype=torch.float64)
    time = torch.stack([process.sigma(t[None], torch.float64)[0] for t in grid])
    velocity = []
    for t, sigma in zip(grid, time, strict=True):
        here = data.flow(z, t_B, t[None])
        velocity.append((here - data.x0(here, t[None])) / sigma)  # dz/dsigma = eps - x0 = (z - x0) / sigma
    mean = torch.trapezoid(torch.stack(velocity), time, dim=0) / (time[-1] - time[0])
    answer = data.between(z, t_B, None, s_B)
    torch.testing.assert_close((z - answer) / time[-1], mean, rtol=1e-5, atol=1e-6)


def test_guidance_hands_the_second_time_to_both_halves() -> None:
    seen = []

    def denoise(z: Tensor, t: Tensor, cond: Tensor, s: Tensor | None = None) -> Tensor:
        seen.append(s)
        return z

    z, t_B, cond = torch.zeros(2, 1, 1, 1), torch.tensor([5, 6]), torch.zeros(2, 3)
    for scale in (1.0, 3.0):
        guided = with_guidance(denoise, cond, torch.zeros(1, 3), scale)
        guided(z, t_B)
        guided(z, t_B, t_B - 1)
    assert seen[0] is None and seen[2] is None
    assert seen[1].tolist() == [4, 5] and seen[3].tolist() == [4, 5, 4, 5]
