"""The variance-preserving noise schedule `z_t = alpha_t z_0 + sigma_t eps`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion.process import NoiseProcess
from musiccm.errors import MusiccmError

# Keys of a diffusers scheduler config whose other values would change alpha_t behind our back.
_REQUIRED_VALUES: dict[str, Any] = {"rescale_betas_zero_snr": False}
# Keys that the table is made from.
_BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")


class NoiseSchedule(NoiseProcess):
    """Looks up `alpha_t = sqrt(abar_t)` and `sigma_t = sqrt(1 - abar_t)` (DDPM, arXiv 2006.11239, equation 4).

    The table is held in float64; lookups move to the device of `t` and are float32 unless asked otherwise. Between two
    timesteps the logarithm of alpha / sigma is interpolated. At t = 0 abar is 0.9985 for MusicLDM.

    Args:
        alphas_cumprod: abar_t for t = 0, 1, ...; strictly decreasing, inside (0, 1).

    Raises:
        MusiccmError: if the table is not such a sequence.
    """

    predictions = ("epsilon", "v_prediction", "flow_prediction", "sample")
    usual_prediction = "epsilon"

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
        self._stated: dict[str, Any] | None = None
        alpha, sigma = table.sqrt(), (1.0 - table).sqrt()
        self._tables = {"alpha": alpha, "sigma": sigma, "log_ratio": (alpha / sigma).log()}
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
        schedule = cls(torch.cumprod(1.0 - cls._betas(config), 0))
        schedule._stated = {key: config[key] for key in _BETAS if key in config}
        return schedule

    @staticmethod
    def _betas(config: Mapping[str, Any]) -> Tensor:
        if config.get("trained_betas") is not None:
            return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        kind = _need(config, "beta_schedule")
        steps = int(_need(config, "num_train_timesteps"))
        if steps < 2:
            raise MusiccmError(f"scheduler_config.json, key 'num_train_timesteps': expected at least 2, found {steps}.")
        if kind == "squaredcos_cap_v2":
            level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            ratios = [min(1.0 - level[i + 1] / level[i], 0.999) for i in range(steps)]
            return torch.tensor(ratios, dtype=torch.float64)
        if kind in ("linear", "scaled_linear"):
            start, end = float(_need(config, "beta_start")), float(_need(config, "beta_end"))
            power = 2.0 if kind == "scaled_linear" else 1.0
            return torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64) ** power
        raise MusiccmError(
            "scheduler_config.json, key 'beta_schedule': expected one of linear, scaled_linear, squaredcos_cap_v2, "
            f"found {kind!r}. Convert the scheduler, or give its betas as 'trained_betas'."
        )

    def config(self) -> dict[str, Any]:
        """The betas as the file stated them; of a table that was given, `trained_betas`."""
        if self._stated is not None:
            return dict(self._stated)
        before = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])
        return {"trained_betas": (1.0 - self.alphas_cumprod / before).tolist()}

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels; timesteps are 0 .. num_train_timesteps - 1."""
        return self.alphas_cumprod.numel()

    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`sqrt(abar_t)`, of the shape of `t_B`."""
        return self._lookup("alpha", t_B, dtype)

    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`sqrt(1 - abar_t)`, of the shape of `t_B`."""
        return self._lookup("sigma", t_B, dtype)

    def _lookup(self, name: str, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        if not t_B.is_floating_point():
            return self._table(name, t_B.device, dtype)[t_B]
        ratio = self._table("log_ratio", t_B.device, dtype)
        low = t_B.floor().clamp(0, self.num_train_timesteps - 1)
        high = (low + 1).clamp(max=self.num_train_timesteps - 1)
        log_ratio = torch.lerp(ratio[low.long()], ratio[high.long()], (t_B - low).to(dtype))
        return torch.sigmoid(2 * log_ratio if name == "alpha" else -2 * log_ratio).sqrt()

    def _table(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (name, device, dtype)
        if key not in self._cache:
            # CUDA has one entry a device and dtype; copying at every step would synchronise.
            # Lightning validates in inference mode, and a table made there could not be used in training.
            with torch.inference_mode(False):
                self._cache[key] = self._tables[name].to(device=device, dtype=dtype)
        return self._cache[key]


def _need(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise MusiccmError(
            f"scheduler_config.json: key '{key}' is missing. Expected a diffusers scheduler config; found keys "
            f"{sorted(config)}."
        )
    return config[key]
