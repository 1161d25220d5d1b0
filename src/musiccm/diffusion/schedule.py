"""The variance-preserving noise schedule `z_t = alpha_t z_0 + sigma_t eps`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

# Keys of a diffusers scheduler config whose other values would change alpha_t behind our back.
_REQUIRED_VALUES: dict[str, Any] = {"rescale_betas_zero_snr": False}


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


class NoiseSchedule:
    """Looks up `alpha_t = sqrt(abar_t)` and `sigma_t = sqrt(1 - abar_t)` (DDPM, arXiv 2006.11239, equation 4).

    The table is held in float64; lookups move to the device of `t` and are float32 unless asked otherwise.

    What t = 0 means depends on the side of a jump. As the *input* of a network, t = 0 is the first noise level of the
    schedule (abar_0 = 0.9985 for MusicLDM), the one that a teacher was trained with: `alpha`, `sigma`, `add_noise`.
    As the *target* of a jump, t <= 0 means clean, alpha = 1 and sigma = 0: `target_alpha`, `target_sigma`. No point of
    the student's grid is 0 (the lowest is 19), so the two readings never meet in one sample.

    Args:
        alphas_cumprod: abar_t for t = 0, 1, ...; strictly decreasing, inside (0, 1).

    Raises:
        MusiccmError: if the table is not such a sequence.
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu().clone()
        valid = table.ndim == 1 and table.numel() >= 2 and bool(torch.isfinite(table).all())
        if not valid or not bool((table > 0).all() and (table < 1).all() and (table.diff() < 0).all()):
            raise MusiccmError(
                "alphas_cumprod: expected a one-dimensional, strictly decreasing sequence of at least two numbers "
                f"inside (0, 1), found shape {tuple(table.shape)} with first values {table.flatten()[:3].tolist()}. "
                "Check the scheduler's betas."
            )
        self.alphas_cumprod = table
        clean = table.clone()
        clean[0] = 1.0
        self._tables = {
            "alpha": table.sqrt(),
            "sigma": (1.0 - table).sqrt(),
            "target_alpha": clean.sqrt(),
            "target_sigma": (1.0 - clean).sqrt(),
        }
        self._cache: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Build the schedule from a diffusers `scheduler_config.json`.

        Args:
            config: the parsed file. Read: `beta_schedule` (`linear`, `scaled_linear`, `squaredcos_cap_v2`),
                `beta_start`, `beta_end`, `num_train_timesteps`, `trained_betas`.

        Returns:
            The schedule; for MusicLDM (`scaled_linear`, 0.0015 to 0.0195, 1000 steps) its last abar is 1.42e-4.

        Raises:
            MusiccmError: if a key is missing or has a value that is not supported.
        """
        for key, wanted in _REQUIRED_VALUES.items():
            if config.get(key, wanted) != wanted:
                raise MusiccmError(
                    f"scheduler_config.json, key '{key}': expected {wanted!r}, found {config[key]!r}. "
                    "This noise schedule is not supported; use a teacher trained without it."
                )
        if config.get("trained_betas") is not None:
            return cls(torch.cumprod(1.0 - torch.as_tensor(config["trained_betas"], dtype=torch.float64), 0))
        kind = _need(config, "beta_schedule")
        steps = int(_need(config, "num_train_timesteps"))
        if steps < 2:
            raise MusiccmError(f"scheduler_config.json, key 'num_train_timesteps': expected at least 2, found {steps}.")
        if kind == "squaredcos_cap_v2":
            level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            ratios = [min(1.0 - level[i + 1] / level[i], 0.999) for i in range(steps)]
            betas = torch.tensor(ratios, dtype=torch.float64)
        elif kind in ("linear", "scaled_linear"):
            start, end = float(_need(config, "beta_start")), float(_need(config, "beta_end"))
            power = 2.0 if kind == "scaled_linear" else 1.0
            betas = torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64) ** power
        else:
            raise MusiccmError(
                "scheduler_config.json, key 'beta_schedule': expected one of linear, scaled_linear, squaredcos_cap_v2, "
                f"found {kind!r}. Convert the scheduler, or give its betas as 'trained_betas'."
            )
        return cls(torch.cumprod(1.0 - betas, 0))

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels; timesteps are 0 .. num_train_timesteps - 1."""
        return self.alphas_cumprod.numel()

    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`sqrt(abar_t)` for integer timesteps, shape of `t_B`."""
        return self._lookup("alpha", t_B, dtype)

    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`sqrt(1 - abar_t)` for integer timesteps, shape of `t_B`."""
        return self._lookup("sigma", t_B, dtype)

    def target_alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `alpha`, for the far end of a jump: exactly 1 where t <= 0 (clean)."""
        return self._lookup("target_alpha", t_B.clamp_min(0), dtype)

    def target_sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `sigma`, for the far end of a jump: exactly 0 where t <= 0 (clean)."""
        return self._lookup("target_sigma", t_B.clamp_min(0), dtype)

    def add_noise(self, z0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """The forward process `z_t = alpha_t z_0 + sigma_t eps`, in float32 or better.

        Args:
            z0: clean latents `[B, ...]`.
            eps: standard normal noise of the same shape.
            t_B: integer timesteps.

        Returns:
            Noised latents of the same shape.
        """
        dtype = compute_dtype(z0)
        alpha = expand_to(self.alpha(t_B, dtype), z0)
        sigma = expand_to(self.sigma(t_B, dtype), z0)
        return alpha * z0.to(dtype) + sigma * eps.to(dtype)

    def _lookup(self, name: str, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        if t_B.is_floating_point():
            raise MusiccmError(f"timesteps: expected integers 0..{self.num_train_timesteps - 1}, found {t_B.dtype}.")
        key = (name, t_B.device, dtype)
        if key not in self._cache:
            # CUDA has one entry a device and dtype; copying at every step would synchronise.
            # Lightning validates in inference mode, and a table made there could not be used in training.
            with torch.inference_mode(False):
                self._cache[key] = self._tables[name].to(device=t_B.device, dtype=dtype)
        return self._cache[key][t_B]


def _need(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise MusiccmError(
            f"scheduler_config.json: key '{key}' is missing. Expected a diffusers scheduler config; found keys "
            f"{sorted(config)}."
        )
    return config[key]
