"""The consistency boundary that makes `f(z, 0, c) = z` hold by construction."""

from __future__ import annotations

import torch
from torch import Tensor


def consistency_boundary(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """The two coefficients of `f = c_skip z + c_out x0_theta` (LCM, arXiv 2310.04378, section 4).

    `c_skip = sd^2 / ((s t)^2 + sd^2)` and `c_out = s t / sqrt((s t)^2 + sd^2)`. With the default scaling the boundary
    acts at t = 0 alone, where c_skip = 1 and c_out = 0 exactly: at t = 19 c_skip is 7e-6 already.

    Args:
        t: timesteps of any shape, integer or float. Float64 stays float64, all else is computed in float32.
        sigma_data: the `sd` above, in units of scaled timesteps.
        timestep_scaling: the `s` above.

    Returns:
        `(c_skip, c_out)`, each of the shape of `t`.
    """
    scaled = t.to(torch.float64 if t.dtype == torch.float64 else torch.float32) * timestep_scaling
    total = scaled.square() + sigma_data**2
    return sigma_data**2 / total, scaled / total.sqrt()
