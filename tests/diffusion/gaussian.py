"""Gaussian data, for which everything that diffusion estimates has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.diffusion import NoiseProcess, expand_to

MUSICLDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}


@dataclass
class Gaussian:
    """Data N(mean, std^2) in every element."""

    schedule: NoiseProcess
    mean: float = 0.7
    std: float = 0.4

    def coefficients(self, z: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t_B, torch.float64), self.schedule.sigma(t_B, torch.float64)
        return expand_to(alpha, z), expand_to(sigma, z)

    def x0(self, z: Tensor, t_B: Tensor) -> Tensor:
        """The posterior mean, which the ideal network predicts."""
        alpha, sigma = self.coefficients(z, t_B)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (z - alpha * self.mean)

    def denoise(self, z: Tensor, t_B: Tensor, cond: Tensor) -> Tensor:
        return self.x0(z, t_B)

    def flow(self, z: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
        """The exact probability-flow ODE: standardised values are constant along a trajectory. t_next = 0 is clean."""
        alpha, sigma = self.coefficients(z, t_B)
        alpha_next, sigma_next = self.coefficients(z, t_next_B)
        clean = expand_to(t_next_B == 0, z)
        alpha_next = torch.where(clean, torch.ones_like(alpha_next), alpha_next)
        sigma_next = torch.where(clean, torch.zeros_like(sigma_next), sigma_next)
        score = (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()
        return alpha_next * self.mean + (alpha_next**2 * self.std**2 + sigma_next**2).sqrt() * score

    def f(self, z: Tensor, t_B: Tensor, cond: Tensor | None = None) -> Tensor:
        """The exact consistency function."""
        return torch.where(expand_to(t_B == 0, z), z, self.flow(z, t_B, torch.zeros_like(t_B)))

    def between(self, z: Tensor, t_B: Tensor, cond: Tensor | None, s_B: Tensor) -> Tensor:
        """The exact denoiser of two times: `mean + g u` for `z = alpha mean + std_t u`, with g of both times.

        From `std_s = alpha_s g + sigma_s (std_t - alpha_t g) / sigma_t`, the jump of DDIM with that answer.
        """
        alpha, sigma = self.coefficients(z, t_B)
        alpha_s, sigma_s = (expand_to(c(s_B, torch.float64), z) for c in (self.schedule.target_alpha,
                                                                          self.schedule.target_sigma))
        at_t, at_s = ((a**2 * self.std**2 + b**2).sqrt() for a, b in ((alpha, sigma), (alpha_s, sigma_s)))
        gain = (at_s * sigma - sigma_s * at_t) / (alpha_s * sigma - sigma_s * alpha)
        return self.mean + gain * (z - alpha * self.mean) / at_t
