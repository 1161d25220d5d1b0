from __future__ import annotations

import math

import pytest
import torch
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import NoiseSchedule, ddim_jump, jump_to_target, predict_at, solver_jump
from musiccm.errors import MusiccmError

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
T_MIXED = torch.tensor([999, 759, 259, 19])


def noisy(batch: int = 4, device: str = "cpu") -> torch.Tensor:
    return torch.randn(batch, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)


def test_ddim_jump_to_clean_is_x0_and_elsewhere_the_mixture() -> None:
    x0, eps = noisy(), noisy().flip(0)
    z = ddim_jump(SCHEDULE, x0, eps, torch.tensor([0, -1, 19, 499]))
    torch.testing.assert_close(z[:2], x0[:2], rtol=0, atol=0)
    abar = SCHEDULE.alphas_cumprod[499]
    torch.testing.assert_close(z[3], abar.sqrt() * x0[3] + (1 - abar).sqrt() * eps[3])


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("skip", [20, 250, 999])
def test_point_data_is_solved_exactly_by_any_jump(solver: str, skip: int, device: str) -> None:
    """All mass in one point: eps is constant along the path, so every step size is exact."""
    point = Gaussian(SCHEDULE, mean=1.3, std=0.0)
    z, t = noisy(device=device), T_MIXED.to(device)
    z_hat, t_next = jump_to_target(point.x0, SCHEDULE, z, t, skip, 1, solver)
    assert t_next.tolist() == [max(t - skip, 0) for t in T_MIXED.tolist()]
    torch.testing.assert_close(z_hat, point.flow(z, t, t_next), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_to_zero_lands_on_clean_with_a_fixed_number_of_calls(solver: str) -> None:
    point = Gaussian(SCHEDULE, mean=1.3, std=0.0)
    calls = []

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t.tolist())
        return point.x0(z, t)

    z_hat, t_next = jump_to_target(denoise, SCHEDULE, noisy(), T_MIXED, 250, "to_zero", solver)
    assert t_next.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(z_hat, torch.full_like(z_hat, 1.3), rtol=0, atol=1e-9)
    assert len(calls) == (4 if solver == "ddim" else 8)
    calls.clear()
    jump_to_target(denoise, SCHEDULE, noisy(), torch.full((4,), 19), 250, "to_zero", solver)
    assert len(calls) == (4 if solver == "ddim" else 8)


def test_mixed_batch_equals_one_by_one_and_arrived_samples_rest() -> None:
    data = Gaussian(SCHEDULE)
    z = noisy()
    for solver in ("ddim", "heun"):
        batch, t_next = jump_to_target(data.x0, SCHEDULE, z, T_MIXED, 100, 3, solver)
        assert t_next.tolist() == [699, 459, 0, 0]
        for i in range(4):
            alone, _ = jump_to_target(data.x0, SCHEDULE, z[i : i + 1], T_MIXED[i : i + 1], 100, 3, solver)
            torch.testing.assert_close(batch[i : i + 1], alone)
        # From t = 19 the first jump is x0 itself and the other two change nothing.
        torch.testing.assert_close(batch[3:], data.x0(z[3:], T_MIXED[3:]))


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_order_of_convergence_to_the_exact_trajectory(solver: str, order: int, device: str) -> None:
    data = Gaussian(SCHEDULE)
    z, t = noisy(device=device), torch.full((4,), 800, device=device)
    errors = []
    for skip in (40, 20, 10, 5):
        z_hat, t_next = jump_to_target(data.x0, SCHEDULE, z, t, skip, 400 // skip, solver)
        errors.append(float((z_hat - data.flow(z, t, t_next)).abs().max()))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), (errors, slopes)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 2), ("heun", 3)])
def test_order_of_one_steps_error_on_a_linear_ode(solver: str, order: int) -> None:
    """Of Gaussian data the flow is linear; timesteps lie between whole ones. The step's width is counted in sigma."""
    data, z, t = Gaussian(SCHEDULE), noisy(), torch.full((4,), 700.5, dtype=torch.float64)
    sigma = SCHEDULE.sigma(t, torch.float64) / SCHEDULE.alpha(t, torch.float64)
    errors, widths = [], []
    for width in (8.125, 4.0625, 2.03125, 1.015625):
        z_hat = solver_jump(data.x0, SCHEDULE, z, t, t - width, solver)
        errors.append(float((z_hat - data.flow(z, t, t - width)).abs().max()))
        below = SCHEDULE.sigma(t - width, torch.float64) / SCHEDULE.alpha(t - width, torch.float64)
        widths.append(float((sigma - below)[0]))
    slopes = [math.log(errors[i] / errors[i + 1]) / math.log(widths[i] / widths[i + 1]) for i in range(3)]
    assert slopes[-1] == pytest.approx(order, abs=0.1), (errors, slopes)


def test_walk_to_zero_converges_to_the_exact_consistency_function() -> None:
    data = Gaussian(SCHEDULE)
    z = noisy()
    exact = data.f(z, T_MIXED)
    errors = []
    for skip in (20, 5, 1):
        z_hat, _ = jump_to_target(data.x0, SCHEDULE, z, T_MIXED, skip, "to_zero")
        errors.append(float((z_hat - exact).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    # What remains is the last jump, which must end in the posterior mean: about sigma^2 / 2 std^2 of the spread.
    assert errors[2] < 0.02 * float((exact - data.mean).abs().max())


def test_exact_consistency_function_is_constant_along_teacher_trajectories() -> None:
    """The property that the distillation loss asks for: f(z, t) = f(Psi(z), t')."""
    data = Gaussian(SCHEDULE)
    z = noisy()
    z_hat, t_next = jump_to_target(data.x0, SCHEDULE, z, T_MIXED, 1, 20, "heun")
    torch.testing.assert_close(data.f(z_hat, t_next)[:3], data.f(z, T_MIXED)[:3], rtol=0, atol=2e-3)


def test_predict_at_splits_z_into_signal_and_noise() -> None:
    data = Gaussian(SCHEDULE)
    z = noisy()
    x0, eps = predict_at(data.x0, SCHEDULE, z, T_MIXED)
    torch.testing.assert_close(SCHEDULE.add_noise(x0, eps, T_MIXED), z, rtol=0, atol=1e-12)


def test_low_precision_latents_come_back_in_float32() -> None:
    z_hat, _ = jump_to_target(lambda z, t: z * 0.5, SCHEDULE, noisy().bfloat16(), T_MIXED, 20)
    assert z_hat.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, 1, "ddim"), "skip"),
        ((20, 0, "ddim"), "jumps"),
        ((20, "all", "ddim"), "jumps"),
        ((20, 1, "euler"), "solver"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, key: str) -> None:
    with pytest.raises(MusiccmError, match=key):
        jump_to_target(lambda z, t: z, SCHEDULE, noisy(), T_MIXED, *arguments)
