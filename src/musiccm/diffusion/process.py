"""What every noise process `z_t = alpha_t z_0 + sigma_t eps` has in common, whichever family it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


def expand_to(coefficient_B: Tensor, like: Tensor) -> Tensor:
    """Append singleton axes so that a per-sample coefficient multiplies a tensor of any rank.

    Args:
        coefficient_B: one number a sample, or a scalar tensor.
        like: tensor `[B, ...]` that it will be multiplied with.

    Returns:
        A view of shape `[B, 1, ..., 1]`; a scalar stays a scalar.
    """
    if coefficient_B.ndim == 0:
        return coefficient_B
    return coefficient_B.reshape(coefficient_B.shape[0], *([1] * (like.ndim - 1)))


def compute_dtype(z: Tensor) -> torch.dtype:
    """The precision that the maths around `z` runs in: float64 stays float64, everything else is float32."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


class NoiseProcess(ABC):
    """A forward process `z_t = alpha_t z_0 + sigma_t eps` over timesteps 0, 1, ..., `num_train_timesteps` - 1.

    Solvers, samplers, losses and the denoiser know a process by these members alone, so a teacher of any family is
    distilled and sampled by the same code. Timesteps may be integers, or floats between them.

    What t = 0 means depends on the side of a jump. As the *input* of a network it is the first noise level: `alpha`,
    `sigma`, `add_noise`. As the *target* of a jump, t <= 0 means clean, alpha = 1 and sigma = 0: `target_alpha`,
    `target_sigma`. No point of a student's grid is 0 (the lowest is 19), so the two readings never meet in one sample.

    Examples:
        >>> from musiccm.diffusion import RectifiedFlow
        >>> process, t_B = RectifiedFlow(num_train_timesteps=1000), torch.tensor([249, 999])
        >>> process.alpha(t_B), process.sigma(t_B)
        (tensor([0.7500, 0.0000]), tensor([0.2500, 1.0000]))
        >>> process.add_noise(torch.tensor([4.0, 4.0]), torch.tensor([8.0, 8.0]), t_B)
        tensor([5., 8.])
    """

    predictions: ClassVar[tuple[str, ...]]
    """Prediction types that determine x0 at every timestep of this process."""
    usual_prediction: ClassVar[str]
    """What a network predicts where its scheduler file does not state it."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseProcess:
        """Build it from a parsed `scheduler_config.json`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The keys of a `scheduler_config.json` that it is built from, beside `num_train_timesteps`.

        An export states them, and `from_config` builds the same process from them.
        """

    @property
    @abstractmethod
    def num_train_timesteps(self) -> int:
        """Number of noise levels."""

    @abstractmethod
    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The share of the signal, of the shape of `t_B`."""

    @abstractmethod
    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The share of the noise, of the shape of `t_B`."""

    def target_alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `alpha`, for the far end of a jump: exactly 1 where t <= 0 (clean)."""
        alpha = self.alpha(t_B.clamp_min(0), dtype)
        return torch.where(t_B <= 0, torch.ones_like(alpha), alpha)

    def target_sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `sigma`, for the far end of a jump: exactly 0 where t <= 0 (clean)."""
        sigma = self.sigma(t_B.clamp_min(0), dtype)
        return torch.where(t_B <= 0, torch.zeros_like(sigma), sigma)

    def network_time(self, t_B: Tensor) -> Tensor:
        """What a network of this family is told as its time; by default the timestep itself."""
        return t_B

    def timesteps_at(self, angles: Sequence[float]) -> list[float]:
        """The timesteps whose `(alpha, sigma)` point in given directions, `tan(angle) = sigma / alpha`.

        Here whole ones, the nearest in angle, each at least one above the next and the last at least 1: those that a
        network was trained at. A process with a formula gives the exact ones between them.

        Args:
            angles: Strictly descending, above 0 (clean) and up to pi / 2 (pure noise).

        Returns:
            One timestep an angle.
        """
        t = torch.arange(self.num_train_timesteps)
        known = torch.atan2(self.sigma(t, torch.float64), self.alpha(t, torch.float64))
        asked = torch.tensor(list(angles), dtype=torch.float64)
        nearest = (known[None] - asked[:, None]).abs().argmin(dim=1).tolist()
        timesteps: list[float] = []
        for timestep in reversed(nearest):
            timesteps.append(max(timestep, timesteps[-1] + 1 if timesteps else 1))
        # what was pushed beyond the noisiest level does not fit, which `angle_timesteps` says
        return [min(timestep, self.num_train_timesteps - 1) for timestep in reversed(timesteps)]

    def add_noise(self, z0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """The forward process `z_t = alpha_t z_0 + sigma_t eps`, in float32 or better.

        Args:
            z0: clean latents `[B, ...]`.
            eps: standard normal noise of the same shape.
            t_B: timesteps.

        Returns:
            Noised latents of the same shape.
        """
        dtype = compute_dtype(z0)
        alpha = expand_to(self.alpha(t_B, dtype), z0)
        sigma = expand_to(self.sigma(t_B, dtype), z0)
        return alpha * z0.to(dtype) + sigma * eps.to(dtype)
