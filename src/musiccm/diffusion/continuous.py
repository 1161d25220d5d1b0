"""Noise processes in closed form: the straight line of rectified flow, and the angle of the cosine schedule.

Both end in pure noise: alpha is exactly 0 at the last timestep, where an epsilon prediction would not determine x0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion.process import NoiseProcess
from musiccm.errors import MusiccmError

# Keys of a FlowMatchEulerDiscreteScheduler whose other values would change what a timestep means.
_FLOW_REQUIRED: dict[str, Any] = {"use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None}


class ContinuousProcess(NoiseProcess):
    """A process with a formula: timestep t is the share `u = (t + 1) / num_train_timesteps` of the way to noise.

    Args:
        num_train_timesteps: number of integer timesteps; the last one is pure noise.

    Raises:
        MusiccmError: there are fewer than two.
    """

    def __init__(self, num_train_timesteps: int = 1000) -> None:
        if num_train_timesteps < 2:
            raise MusiccmError(
                f"scheduler_config.json, key 'num_train_timesteps': expected at least 2, found {num_train_timesteps}."
            )
        self._steps = num_train_timesteps

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels."""
        return self._steps

    def _share(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return (t_B.to(dtype) + 1.0) / self._steps

    @abstractmethod
    def network_time(self, t_B: Tensor) -> Tensor:
        """What a network of this family is told as its time, float32."""


class RectifiedFlow(ContinuousProcess):
    """The straight line `z = (1 - s) z_0 + s eps` (rectified flow, arXiv 2209.03003; flow matching, arXiv 2210.02747).

    `s = shift u / (1 + (shift - 1) u)` (arXiv 2403.03206, equation 23). The network is told `s num_train_timesteps`, as
    diffusers' flow-matching schedulers tell it.

    Args:
        num_train_timesteps: number of integer timesteps.
        shift: above 1 spends more timesteps on noisy levels.

    Raises:
        MusiccmError: `shift` is not positive.
    """

    predictions = ("flow_prediction", "sample")
    usual_prediction = "flow_prediction"

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        super().__init__(num_train_timesteps)
        if not (shift > 0 and math.isfinite(shift)):
            raise MusiccmError(f"scheduler_config.json, key 'shift': expected a positive number, found {shift}.")
        self.shift = shift

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RectifiedFlow:
        """Build it from the `scheduler_config.json` of a `FlowMatchEulerDiscreteScheduler`.

        Args:
            config: the parsed file. Read: `num_train_timesteps`, `shift`.

        Returns:
            The process.

        Raises:
            MusiccmError: a key has a value that is not supported.
        """
        for key, wanted in _FLOW_REQUIRED.items():
            if config.get(key, wanted) != wanted:
                raise MusiccmError(f"scheduler_config.json, key '{key}': expected {wanted!r}, found {config[key]!r}. "
                                   "This time warp is not supported; use a teacher trained without it.")
        return cls(int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0)))

    def config(self) -> dict[str, Any]:
        """`shift`."""
        return {"shift": self.shift}

    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`s`, of the shape of `t_B`."""
        u = self._share(t_B, dtype)
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`1 - s`, of the shape of `t_B`."""
        return 1.0 - self.sigma(t_B, dtype)

    def network_time(self, t_B: Tensor) -> Tensor:
        """`s num_train_timesteps`, float32."""
        return self.sigma(t_B) * self._steps

    def timesteps_at(self, angles: Sequence[float]) -> list[float]:
        """Those of `s = sin / (sin + cos)`, the time warp undone."""
        levels = [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in angles]
        return [self._steps * s / (self.shift - (self.shift - 1.0) * s) - 1.0 for s in levels]


class Angle(ContinuousProcess):
    """The quarter circle `z = cos(d) z_0 + sin(d) eps` (MeLoDy, arXiv 2305.15719, section 4; the cosine schedule).

    Its velocity `cos(d) eps - sin(d) z_0` is the derivative of z by the angle d = u pi / 2, and diffusers'
    `v_prediction`. The network is told the angle in radians.

    Args:
        num_train_timesteps: number of integer timesteps.
    """

    predictions = ("v_prediction", "flow_prediction", "sample")
    usual_prediction = "v_prediction"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Angle:
        """Build it from a `scheduler_config.json` whose `_class_name` is `AngleScheduler`."""
        return cls(int(config.get("num_train_timesteps", 1000)))

    def config(self) -> dict[str, Any]:
        """Nothing: it has no parameters of its own."""
        return {}

    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`cos(d)`, of the shape of `t_B`."""
        # as a sine, which is exactly 0 at the last timestep
        return torch.sin((1.0 - self._share(t_B, dtype)) * (math.pi / 2))

    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`sin(d)`, of the shape of `t_B`."""
        return torch.sin(self._share(t_B, dtype) * (math.pi / 2))

    def network_time(self, t_B: Tensor) -> Tensor:
        """The angle d in radians, float32."""
        return self._share(t_B, torch.float32) * (math.pi / 2)

    def timesteps_at(self, angles: Sequence[float]) -> list[float]:
        """`u num_train_timesteps - 1`, exactly the last timestep at pi / 2."""
        return [self._steps * (angle / (math.pi / 2)) - 1.0 for angle in angles]
