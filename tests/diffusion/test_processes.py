"""Rectified flow and the angle process against diffusers and closed forms, and what all families share."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import (
    PREDICTION_TYPES,
    Angle,
    NoiseProcess,
    NoiseSchedule,
    RectifiedFlow,
    check_prediction_type,
    expand_to,
    jump_to_target,
    noise_process,
    prediction_type_of,
    to_eps,
    to_x0,
    training_target,
)
from musiccm.errors import MusiccmError

PROCESSES = {"table": NoiseSchedule.from_config(MUSICLDM), "flow": RectifiedFlow(), "shifted": RectifiedFlow(1000, 3.0),
             "angle": Angle()}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_has_diffusers_levels_and_network_times(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    ours = noise_process({**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    t = torch.arange(999, -1, -1)
    torch.testing.assert_close(ours.sigma(t), theirs.sigmas.float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.network_time(t), theirs.timesteps, rtol=1e-6, atol=1e-4)
    z0, eps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 500, 990])
    expected = theirs.scale_noise(z0, theirs.timesteps[index], eps)
    torch.testing.assert_close(ours.add_noise(z0, eps, t[index]), expected)


def test_angle_is_a_quarter_circle_whose_velocity_is_the_derivative_by_the_angle() -> None:
    angle = Angle(200)
    t = torch.arange(200)
    alpha, sigma = angle.alpha(t, torch.float64), angle.sigma(t, torch.float64)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(200, dtype=torch.float64), atol=1e-14)
    x0, eps = torch.randn(2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(delta.cos() * x0 + delta.sin() * eps, delta)
    at = (delta.detach() * 2 / math.pi * 200 - 1)[None]
    target = training_target("v_prediction", x0, eps, angle.alpha(at, torch.float64), angle.sigma(at, torch.float64))
    torch.testing.assert_close(target[0], slope)
    assert float(angle.network_time(at)) == pytest.approx(0.7)


@pytest.mark.parametrize("process", [RectifiedFlow(), RectifiedFlow(1000, 3.0), Angle()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_timestep_is_pure_noise_exactly(process: NoiseProcess, dtype: torch.dtype) -> None:
    t = torch.tensor([999])
    assert (float(process.alpha(t, dtype)), float(process.sigma(t, dtype))) == (0.0, 1.0)


@every_process
def test_zero_is_a_noise_level_as_input_and_clean_as_target(process: NoiseProcess) -> None:
    t = torch.tensor([-20, 0, 19])
    assert process.target_alpha(t).tolist()[:2] == [1.0, 1.0]
    assert process.target_sigma(t).tolist()[:2] == [0.0, 0.0]
    assert process.sigma(t[1:]).min() > 0
    assert (process.target_alpha(t)[2], process.target_sigma(t)[2]) == (process.alpha(t[2]), process.sigma(t[2]))


@every_process
def test_float_timesteps_agree_with_integers_and_lie_between(process: NoiseProcess) -> None:
    t = torch.tensor([0, 1, 19, 500, 998, 999])
    for level in (process.alpha, process.sigma):
        torch.testing.assert_close(level(t.double(), torch.float64), level(t, torch.float64), rtol=1e-12, atol=1e-12)
    between = torch.tensor([0.5, 19.25, 998.9], dtype=torch.float64)
    sigma = process.sigma(between, torch.float64)
    assert (process.sigma(between.floor(), torch.float64) < sigma).all()
    assert (sigma < process.sigma(between.ceil(), torch.float64)).all()


@every_process
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_prediction_determines_x0_at_every_timestep_or_is_refused(process: NoiseProcess, kind: str) -> None:
    if kind not in process.predictions:
        with pytest.raises(MusiccmError, match=f"prediction_type.*{type(process).__name__}.*{kind}"):
            check_prediction_type(kind, process)
        return
    t = torch.arange(1000)
    x0, eps = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = process.alpha(t, torch.float64), process.sigma(t, torch.float64)
    z = process.add_noise(x0, eps, t)
    output = training_target(kind, x0, eps, alpha, sigma)
    torch.testing.assert_close(to_x0(kind, output, z, alpha, sigma), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(to_eps(kind, output, z, alpha, sigma), eps, rtol=0, atol=1e-9)


@every_process
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_solvers_converge_to_the_exact_trajectory_at_their_order(
    process: NoiseProcess, solver: str, order: int
) -> None:
    data = Gaussian(process)
    z, t = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.full((4,), 800)
    errors = []
    for skip in (20, 10, 5):
        z_hat, t_next = jump_to_target(data.x0, process, z, t, skip, 400 // skip, solver)
        errors.append(float((z_hat - data.flow(z, t, t_next)).abs().max()))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15), errors


@every_process
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_point_data_is_solved_exactly_from_pure_noise(process: NoiseProcess, solver: str) -> None:
    point = Gaussian(process, mean=1.3, std=0.0)
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([999, 19])
    z_hat, t_next = jump_to_target(point.x0, process, z, t, 250, 2, solver)
    assert t_next.tolist() == [499, 0]
    # of point data, the noise along a trajectory is what z holds beside the signal at its start
    eps = (z - expand_to(process.alpha(t, torch.float64), z) * 1.3) / expand_to(process.sigma(t, torch.float64), z)
    signal = expand_to(process.target_alpha(t_next, torch.float64), z) * 1.3
    expected = signal + expand_to(process.target_sigma(t_next, torch.float64), z) * eps
    torch.testing.assert_close(z_hat, expected, rtol=0, atol=1e-9)


def test_the_family_follows_from_the_schedulers_class() -> None:
    assert isinstance(noise_process({**MUSICLDM, "_class_name": "DDIMScheduler"}), NoiseSchedule)
    assert isinstance(noise_process(MUSICLDM), NoiseSchedule)
    angle = noise_process({"_class_name": "AngleScheduler", "num_train_timesteps": 50})
    assert isinstance(angle, Angle) and angle.num_train_timesteps == 50
    names = {None: "epsilon", "DDIMScheduler": "epsilon", "AngleScheduler": "v_prediction",
             "FlowMatchEulerDiscreteScheduler": "flow_prediction"}
    assert {name: prediction_type_of({"_class_name": name}) for name in names} == names
    assert prediction_type_of({"_class_name": "DDIMScheduler", "prediction_type": "sample"}) == "sample"


@pytest.mark.parametrize(
    ("change", "key"),
    [({"use_dynamic_shifting": True}, "use_dynamic_shifting"), ({"shift_terminal": 0.1}, "shift_terminal"),
     ({"shift": 0.0}, "shift"), ({"num_train_timesteps": 1}, "num_train_timesteps")],
)
def test_bad_flow_config_names_the_key(change: dict, key: str) -> None:
    with pytest.raises(MusiccmError, match=key):
        noise_process({"_class_name": "FlowMatchEulerDiscreteScheduler", **change})
