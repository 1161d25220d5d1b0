"""Gaussian data, for which everything that diffusion estimates has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.diffusion import NoiseSchedule, expand_to

MUSICLDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}


@dataclass
class Gaussian:
    """Data N(mean, std^2) in every element."""

    schedule: NoiseSchedule
    mean: float = 0.7
    std: float = 0.4

    def coefficients(self, z: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.schedule.alphas_cumprod.to(t_B.device)[t_B]
        return expand_to(abar.sqrt(), z), expand_to((1 - abar).sqrt(), z)

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
