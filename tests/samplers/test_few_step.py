from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import NoiseSchedule, consistency_boundary, sampling_timesteps, student_grid, to_x0
from musiccm.errors import MusiccmError
from musiccm.samplers import Lcm, Stepper, sample_noise, seeded_noise_fn, student_stepper
from musiccm.samplers.noise import NoiseFn

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
GRID = student_grid()
COND = torch.zeros(3, 2)


def drawn(seed: int, shape: torch.Size) -> NoiseFn:
    """Noise step after step from one generator, as diffusers draws it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator)


def noise(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (3, 2, 4, 2), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_equals_diffusers_lcm_scheduler(kind: str, steps: int, device: str) -> None:
    scheduler = LCMScheduler.from_config(
        {**MUSICLDM, "original_inference_steps": 50, "prediction_type": kind, "clip_sample": False}
    )
    schedule = NoiseSchedule(scheduler.alphas_cumprod)

    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z.roll(1, 2)) * (1 + t.float() / 1000)[:, None, None, None]

    def f(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        x0 = to_x0(kind, network(z, t), z, schedule.alpha(t), schedule.sigma(t))
        c_skip, c_out = (c[:, None, None, None] for c in consistency_boundary(t))
        return c_skip * z + c_out * x0

    scheduler.set_timesteps(steps)
    z, generator = noise(), torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t.expand(3)), t, z, generator=generator).prev_sample
    at_work = student_stepper(f, schedule, GRID, steps)
    ours = at_work.sample(COND.to(device), noise().to(device), drawn(7, noise().shape)).cpu()
    # An epsilon network's x0 is about 84 times larger at t = 999: the tolerance is relative to that.
    torch.testing.assert_close(ours, z, rtol=1e-5, atol=1e-5 * max(1.0, float(z.abs().max())))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_statistics_with_the_exact_consistency_function(gamma: float) -> None:
    """With exact f everything stays Gaussian, so mean and variance follow by hand, step after step."""
    data = Gaussian(SCHEDULE, mean=0.7, std=0.4)
    timesteps = sampling_timesteps(4, GRID).tolist()
    mean, std = 0.0, 1.0
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        abar = float(SCHEDULE.alphas_cumprod[t])
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        marginal = (abar * data.std**2 + sigma**2) ** 0.5
        # x0 = a z + b; the predicted eps is (z - alpha x0)/sigma = (1 - alpha a)/sigma z - alpha b/sigma.
        a = data.std / marginal
        b = data.mean - a * alpha * data.mean
        if t_next is None:
            mean, std = a * mean + b, abs(a) * std
            break
        abar_next = float(SCHEDULE.alphas_cumprod[t_next])
        kept = (1 - gamma**2) ** 0.5 * (1 - abar_next) ** 0.5
        gain = abar_next**0.5 * a + kept * (1 - alpha * a) / sigma
        offset = abar_next**0.5 * b - kept * alpha * b / sigma
        mean, std = gain * mean + offset, ((gain * std) ** 2 + gamma**2 * (1 - abar_next)) ** 0.5
    initial = noise(0, 400, 500).double()
    generator = torch.Generator().manual_seed(1)
    samples = Stepper(data.f, SCHEDULE, timesteps, Lcm(gamma)).sample(
        COND, initial, lambda step: torch.randn(initial.shape, generator=generator)
    )
    assert float(samples.mean()) == pytest.approx(mean, abs=5 * std / 200_000**0.5)
    assert float(samples.std()) == pytest.approx(std, rel=0.01)
    # Four steps of LCM's sampler on the exact function give the data's own distribution.
    if gamma == 1.0:
        assert (mean, std) == (pytest.approx(data.mean, abs=0.01), pytest.approx(data.std, rel=0.01))


def test_gamma_0_draws_nothing_and_gamma_keeps_the_variance() -> None:
    seen: list[torch.Tensor] = []

    def f(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return torch.zeros_like(z)

    start = noise(0, 200, 500)
    Stepper(f, SCHEDULE, [999, 499], Lcm(0.0)).sample(COND, start)
    sigma = SCHEDULE.sigma(torch.tensor([999, 499]))
    torch.testing.assert_close(seen[1], start / sigma[0] * sigma[1])
    for gamma in (0.3, 0.7, 1.0):
        seen.clear()
        Stepper(f, SCHEDULE, [999, 499], Lcm(gamma)).sample(COND, start, drawn(1, start.shape))
        assert float(seen[1].std()) == pytest.approx(float(sigma[1]), rel=0.01)


def test_same_seed_same_samples_and_per_sample_seeds_do_not_depend_on_the_batch() -> None:
    data = Gaussian(SCHEDULE)

    def draw(seeds: list[int]) -> torch.Tensor:
        initial = sample_noise(seeds, (2, 4, 2))
        return Stepper(data.f, SCHEDULE, [999, 499, 259], Lcm()).sample(
            COND, initial, seeded_noise_fn(seeds, (2, 4, 2))
        )

    both = draw([3, 8])
    assert torch.equal(both, draw([3, 8]))
    torch.testing.assert_close(both[1:], draw([8]))
    assert not torch.allclose(both[0], both[1])
    assert not torch.equal(sample_noise([0], (4,), 1), sample_noise([1], (4,), 0))


def test_callback_sees_every_step() -> None:
    seen = []
    last = Stepper(Gaussian(SCHEDULE).f, SCHEDULE, [999, 499], Lcm()).sample(
        COND, noise(), drawn(0, noise().shape), lambda step, t, x0: seen.append((step, t, x0))
    )
    assert [(step, t) for step, t, _ in seen] == [(0, 999), (1, 499)]
    assert torch.equal(seen[-1][2], last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 3.0}, "guidance_scale"),
        ({"sampler": {"name": "lcm", "gamma": 1.5}}, "gamma"),
        ({"sampler": "heun"}, "the model is a distilled student, which ddim, lcm, tcd sample, found heun"),
        ({"steps": 51}, "from 1 to 50"),
        ({"grid": student_grid(1000, 2), "steps": 3}, "from 1 to 2"),
        ({"strength": 0.0}, "strength"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    arguments = {"grid": GRID, "steps": 2, **options}
    with pytest.raises(MusiccmError, match=message):
        student_stepper(Gaussian(SCHEDULE).f, SCHEDULE, **arguments)


def test_fresh_noise_has_a_source() -> None:
    with pytest.raises(MusiccmError, match="lcm draws fresh noise; expected a noise_fn, found none"):
        student_stepper(Gaussian(SCHEDULE).f, SCHEDULE, GRID, 2).sample(COND, noise())
