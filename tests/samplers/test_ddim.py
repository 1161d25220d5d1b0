from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import NoiseSchedule, to_x0
from musiccm.errors import MusiccmError
from musiccm.samplers import teacher_stepper, trailing_timesteps

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)


def noise() -> torch.Tensor:
    return torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(0))


def unasked(count: int) -> torch.Tensor:
    raise AssertionError("without guidance there is no null condition")


def diffusers_scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler.from_config(
        {
            **MUSICLDM,
            "prediction_type": kind,
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
        }
    )


def test_every_trailing_schedule_equals_diffusers() -> None:
    scheduler = diffusers_scheduler("epsilon")
    for steps in range(1, 101):
        scheduler.set_timesteps(steps)
        # diffusers' float range may run one past the end (61 steps: a 62nd timestep of -1).
        ours, theirs = torch.tensor(trailing_timesteps(steps, 1000)), scheduler.timesteps[:steps]
        # Where i * 1000 / steps ends in exactly one half, diffusers' running sum may round to the other neighbour.
        tie = torch.tensor([(2 * i * 1000) % steps == 0 and (i * 1000) % steps != 0 for i in range(steps, 0, -1)])
        assert torch.equal(ours[~tie], theirs[~tie]), steps
        assert bool(((ours - theirs).abs() <= 1).all()), steps


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("steps", "scale"), [(1, 1.0), (2, 3.0), (4, 2.0), (50, 3.0)])
def test_equals_diffusers_ddim_scheduler(kind: str, steps: int, scale: float) -> None:
    scheduler = diffusers_scheduler(kind)
    schedule = NoiseSchedule(scheduler.alphas_cumprod)
    cond, null = torch.tensor([[0.5], [1.0], [1.5]]), torch.tensor([[0.1]])

    def network(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z.roll(1, 2) * cond[:, :, None, None]) * (1 + t.float() / 1000)[:, None, None, None]

    def denoise(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return to_x0(kind, network(z, t, cond), z, schedule.alpha(t), schedule.sigma(t))

    scheduler.set_timesteps(steps)
    z = noise()
    for t in scheduler.timesteps:
        t_B = t.expand(3)
        # diffusers guides the network's output; ours guides x0. They are the same thing, and this checks it.
        with_cond, without = network(z, t_B, cond), network(z, t_B, null.expand(3, 1))
        z = scheduler.step(without + scale * (with_cond - without), t, z, eta=0.0).prev_sample
    ours = teacher_stepper(denoise, schedule, lambda count: null, steps, scale).sample(cond, noise())
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-5 * max(1.0, float(z.abs().max())))


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_gaussian_data_gives_the_product_of_the_exact_steps(steps: int) -> None:
    """The ideal network is affine in z, so a DDIM step maps the standardised mean and spread in closed form."""
    data = Gaussian(SCHEDULE, mean=0.0, std=0.4)
    factor = 1.0
    timesteps = [1000 * i // steps - 1 for i in range(steps, 0, -1)]
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        abar = float(SCHEDULE.alphas_cumprod[t])
        abar_next = float(SCHEDULE.alphas_cumprod[t_next]) if t_next > 0 else 1.0
        variance = abar * data.std**2 + 1 - abar
        # E[z_next | z] with eps and x0 both linear in z: (alpha' alpha std^2 + sigma' sigma) / variance.
        factor *= ((abar_next * abar) ** 0.5 * data.std**2 + ((1 - abar_next) * (1 - abar)) ** 0.5) / variance
    z = noise().double()
    made = teacher_stepper(data.denoise, SCHEDULE, unasked, steps, 1.0).sample(torch.zeros(3, 1), z)
    torch.testing.assert_close(made, factor * z, rtol=1e-9, atol=1e-12)


def test_calls_and_callback() -> None:
    data = Gaussian(SCHEDULE)
    batches: list[int] = []
    steps: list[tuple[int, int]] = []

    def denoise(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        batches.append(z.shape[0])
        return data.x0(z, t)

    cond = torch.zeros(3, 1)
    guided = teacher_stepper(denoise, SCHEDULE, lambda count: cond, 4, 3.0)
    guided.sample(cond, noise(), callback=lambda i, t, x0: steps.append((i, t)))
    assert batches == [6] * 4
    assert steps == [(0, 999), (1, 749), (2, 499), (3, 249)]
    batches.clear()
    teacher_stepper(denoise, SCHEDULE, unasked, 4, 1.0).sample(cond, noise())
    assert batches == [3] * 4


@pytest.mark.parametrize("steps", [0, 501, 1.5, True])
def test_impossible_step_counts_are_refused(steps: object) -> None:
    with pytest.raises(MusiccmError, match="from 1 to 500"):
        trailing_timesteps(steps, 1000)  # type: ignore[arg-type]
