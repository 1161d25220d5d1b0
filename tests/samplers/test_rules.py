"""The samplers by name, against diffusers' schedulers and the exact trajectories of Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, TCDScheduler
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import Angle, NoiseProcess, NoiseSchedule, RectifiedFlow, to_x0
from musiccm.errors import MusiccmError
from musiccm.samplers import (
    SAMPLERS,
    Ddim,
    DpmSolver,
    Heun,
    Lcm,
    Sampler,
    Tcd,
    make_sampler,
    trailing_timesteps,
)

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
PROCESSES = {"table": SCHEDULE, "flow": RectifiedFlow(), "angle": Angle()}


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(seed))


def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z.roll(1, 2)) * (1 + t.float() / 1000)[:, None, None, None]


def x0_of(kind: str, process: NoiseProcess):
    return lambda z, t: to_x0(kind, network(z, t), z, process.alpha(t), process.sigma(t))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_equals_diffusers(kind: str, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = TCDScheduler.from_config(
        {**MUSICLDM, "prediction_type": kind, "clip_sample": False, "original_inference_steps": 50}
    )
    schedule = NoiseSchedule(scheduler.alphas_cumprod)
    scheduler.set_timesteps(4)
    fresh = iter([noise(1), noise(2), noise(3)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *_, **__: next(fresh))
    timesteps, z, x0 = scheduler.timesteps.tolist(), noise(), noise()
    for step, t in enumerate(scheduler.timesteps):
        x0 = x0_of(kind, schedule)(z, t.expand(3))
        if step < 3:  # where diffusers ends, it leaves the lowest noise level in; ours returns the clean estimate
            z = scheduler.step(network(z, t.expand(3)), t, z, eta=gamma).prev_sample
    ours = Tcd(gamma).sample(x0_of(kind, schedule), schedule, noise(), timesteps, lambda step: noise(step + 1))
    torch.testing.assert_close(ours, x0, rtol=1e-4, atol=1e-4 * float(x0.abs().max()))


def test_tcd_between_whole_timesteps_is_of_the_levels_there() -> None:
    """Deterministic at gamma 0, as at whole ones: 58.76 is not rounded down to 58."""
    schedule = NoiseSchedule.from_config(MUSICLDM)
    ratio = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt().log().numpy()
    for t_next in (58.7647, 470.1176, 940.2353):
        assert Tcd(0.0).share(schedule, t_next) == 0.0
        for gamma in (0.3, 1.0):
            low, high = (np.exp(np.interp(t, np.arange(1000), ratio)) for t in ((1 - gamma) * t_next, t_next))
            assert Tcd(gamma).share(schedule, t_next) == pytest.approx(np.sqrt(1 - (low / high) ** 2), abs=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_dpm_solver_equals_diffusers(kind: str, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(
        {**MUSICLDM, "prediction_type": kind, "timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    )
    schedule = NoiseSchedule(scheduler.alphas_cumprod)
    scheduler.set_timesteps(steps)
    timesteps = trailing_timesteps(steps, 1000)
    assert scheduler.timesteps.tolist() == timesteps
    z = noise()
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t.expand(3)), t, z).prev_sample
    ours = DpmSolver().sample(x0_of(kind, schedule), schedule, noise(), timesteps)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4 * float(z.abs().max()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_over_a_rectified_flow_is_the_euler_method(shift: float) -> None:
    process, steps = RectifiedFlow(1000, shift), 5
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    timesteps = trailing_timesteps(steps, 1000)
    scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in timesteps])
    z = noise()
    for t, theirs in zip(timesteps, scheduler.timesteps, strict=True):
        z = scheduler.step(network(z, torch.tensor(t).expand(3)), theirs, z).prev_sample
    ours = Ddim().sample(x0_of("flow_prediction", process), process, noise(), timesteps)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("sampler", "order"), [(Ddim(), 1), (Heun(), 2), (DpmSolver(), 2)])
def test_order_of_convergence_to_the_exact_trajectory(process: NoiseProcess, sampler: Sampler, order: int) -> None:
    """The last call only reads x0; it is put back on the trajectory, so that the walk before it is what is measured."""
    data = Gaussian(process)
    z = noise().double()
    errors = []
    for skip in (20, 10, 5):
        timesteps, seen = list(range(799, 398, -skip)), []

        def watched(z: torch.Tensor, t: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append((int(t[0]), z))
            return data.x0(z, t)

        sampler.sample(watched, process, z, timesteps)
        last, reached = seen[-1]
        assert last == timesteps[-1] == 399
        exact = data.flow(z, torch.full((3,), 799), torch.full((3,), 399))
        errors.append(float((reached - exact).abs().max()))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.25), errors


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", ["ddim", "lcm", "heun", "dpm-solver++"])
def test_every_sampler_ends_at_the_data_from_pure_noise(process: NoiseProcess, name: str) -> None:
    """A few steps with the exact consistency function by LCM's sampler, many with the ideal denoiser by the others.

    TCD's is not among them: its jumps are as long as 1 - gamma of the way, which no number of steps makes exact.
    """
    data, sampler = Gaussian(process), make_sampler(name)
    initial = torch.randn(4, 200, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    network, steps = (data.f, 4) if name == "lcm" else (data.x0, 100)
    samples = sampler.sample(network, process, initial, trailing_timesteps(steps, 1000),
                             lambda step: torch.randn(initial.shape, generator=generator, dtype=torch.float64))
    assert float(samples.mean()) == pytest.approx(data.mean, abs=0.02)
    assert float(samples.std()) == pytest.approx(data.std, rel=0.07)


@pytest.mark.parametrize(("name", "calls"), [("ddim", 4), ("lcm", 4), ("tcd", 4), ("heun", 7), ("dpm-solver++", 4)])
def test_network_calls_and_callback(name: str, calls: int) -> None:
    seen: list[int] = []
    steps: list[tuple[int, int]] = []

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(z))
        return z

    make_sampler(name).sample(denoise, SCHEDULE, noise(), [999, 749, 499, 249], lambda step: noise(step),
                              lambda step, t, x0: steps.append((step, t)))
    assert seen == [3] * calls
    assert steps == [(0, 999), (1, 749), (2, 499), (3, 249)]


def test_specifications() -> None:
    assert make_sampler({"name": "lcm", "gamma": 0.6}) == Lcm(0.6) == make_sampler("lcm", gamma=0.6)
    assert make_sampler("tcd") == Tcd(0.3)
    for kind in SAMPLERS.values():
        assert make_sampler(kind.name) == make_sampler(kind()) == kind()
    for spec, gamma, message in [("euler", None, "expected one of ddim, lcm"), ({"gamma": 1}, None, "found None"),
                                 ({"name": "heun", "gamma": 1}, None, r"sampler\.gamma: the sampler heun"),
                                 ("ddim", 0.5, "gamma: the sampler ddim has none; lcm and tcd have"),
                                 ("lcm", 1.5, r"\[0, 1\]"), ("tcd", -0.1, r"\[0, 1\]")]:
        with pytest.raises(MusiccmError, match=message):
            make_sampler(spec, gamma)


def test_a_sampler_without_its_noise_is_refused() -> None:
    with pytest.raises(MusiccmError, match="lcm draws fresh noise"):
        Lcm(0.5).sample(network, SCHEDULE, noise(), [999, 499])
    Lcm(0.5).sample(network, SCHEDULE, noise(), [999])  # a single step draws none
