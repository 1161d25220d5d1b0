"""The call signatures that the rest of the package agrees on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Denoise: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""`denoise(z_BCTF, t_B, cond) -> x0_BCTF`: teacher, student, EMA and closed-form toys alike.

`cond` is `AnyCondition`: a vector an item, `[B, D]`, or a `Condition`."""

BoundDenoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`denoise(z_BCTF, t_B) -> x0_BCTF`: a denoiser whose condition (and guidance) is already fixed."""

ConsistencyFunction: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""`f(z_BCTF, t_B, cond) -> x0_BCTF` with `f(z, 0, cond) = z`."""
