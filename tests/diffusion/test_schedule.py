from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from gaussian import MUSICLDM

from musiccm.diffusion import NoiseSchedule
from musiccm.errors import MusiccmError


@pytest.mark.parametrize(
    "config",
    [
        MUSICLDM,
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_equals_diffusers(config: dict) -> None:
    reference = DDIMScheduler.from_config(dict(config)).alphas_cumprod.double()
    # diffusers multiplies up in float32.
    torch.testing.assert_close(NoiseSchedule.from_config(config).alphas_cumprod, reference, rtol=2e-4, atol=1e-8)


def test_musicldm_terminal_level() -> None:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    assert schedule.num_train_timesteps == 1000
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(1.42e-4, rel=5e-3)
    assert float(schedule.alpha(torch.tensor(999))) == pytest.approx(0.0119, rel=5e-3)


def test_variance_is_preserved_and_dtype_follows_the_request() -> None:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    t = torch.arange(1000)
    total = schedule.alpha(t, torch.float64) ** 2 + schedule.sigma(t, torch.float64) ** 2
    torch.testing.assert_close(total, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-14)
    assert schedule.alpha(t).dtype == torch.float32


def test_zero_is_a_noise_level_as_input_and_clean_as_target() -> None:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    t = torch.tensor([-20, 0, 19])
    assert schedule.target_alpha(t)[:2].tolist() == [1.0, 1.0]
    assert schedule.target_sigma(t)[:2].tolist() == [0.0, 0.0]
    assert float(schedule.sigma(torch.tensor(0))) == pytest.approx(0.0015**0.5, rel=1e-5)
    assert schedule.target_sigma(t)[2] == schedule.sigma(t[2:])[0]


def test_add_noise_has_the_marginal_moments() -> None:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    generator = torch.Generator().manual_seed(0)
    z0 = 2.0 + 0.5 * torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    eps = torch.randn(z0.shape, generator=generator, dtype=torch.float64)
    z = schedule.add_noise(z0, eps, torch.tensor([100, 600]))
    for row, t in zip(z, (100, 600), strict=True):
        abar = float(schedule.alphas_cumprod[t])
        assert float(row.mean()) == pytest.approx(2.0 * abar**0.5, abs=0.01)
        assert float(row.var()) == pytest.approx(0.25 * abar + 1 - abar, rel=0.01)


def test_lookup_first_made_in_inference_mode_serves_training() -> None:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    t = torch.tensor([999, 19])
    with torch.inference_mode():
        schedule.alpha(t)
    assert not schedule._cache["alpha", t.device, torch.float32].is_inference()
    weight = torch.ones(2, requires_grad=True)
    (schedule.alpha(t) * weight).sum().backward()
    torch.testing.assert_close(weight.grad, schedule.alphas_cumprod[t].sqrt().float())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"beta_schedule": None}, "beta_schedule"),
        ({"beta_end": None}, "beta_end"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
    ],
)
def test_bad_config_names_the_key(change: dict, key: str) -> None:
    with pytest.raises(MusiccmError, match=key):
        NoiseSchedule.from_config({**MUSICLDM, **change})


def test_bad_tables_are_refused() -> None:
    for table in ([0.5, 0.9], [1.0, 0.5], [0.5], [[0.9, 0.5]], [0.9, float("nan")]):
        with pytest.raises(MusiccmError, match="alphas_cumprod"):
            NoiseSchedule(table)
