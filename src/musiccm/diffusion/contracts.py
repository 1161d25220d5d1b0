"""The call signatures that the rest of the package agrees on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Denoise: TypeAlias = Callable[..., Tensor]
"""`denoise(z_BCTF, t_B, cond, s_B=None) -> x0_BCTF`: teacher, student, EMA and closed-form toys alike.

`cond` is `AnyCondition`: a vector an item, `[B, D]`, or a `Condition`.

`s_B` is a second time, for objectives that learn jumps (CTM, arXiv 2310.02279; MeanFlow, arXiv 2505.13447), and is
given only to networks that take one. The answer is then the x0 with which a single DDIM jump from t lands where the
flow is at s (`jump_between`): the denoiser itself as s approaches t, which is what leaving s out means, and the
consistency function at s = 0, which is clean."""

BoundDenoise: TypeAlias = Callable[..., Tensor]
"""`denoise(z_BCTF, t_B, s_B=None) -> x0_BCTF`: a denoiser whose condition (and guidance) is already fixed."""

ConsistencyFunction: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""`f(z_BCTF, t_B, cond) -> x0_BCTF` with `f(z, 0, cond) = z`."""
