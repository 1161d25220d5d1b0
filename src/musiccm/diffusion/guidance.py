"""Classifier-free guidance, in the one convention that this package uses: the *scale*."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.diffusion.condition import AnyCondition, cat_conditions, expand_condition
from musiccm.diffusion.contracts import BoundDenoise, Denoise
from musiccm.diffusion.process import expand_to
from musiccm.errors import MusiccmError

#: How a distilled student is guided: by the one scale that was distilled into it, by any scale that it is told, or by
#: two calls of it, as a teacher is.
GUIDANCE_KINDS = ("fixed", "variable", "direct")


def guide(cond: Tensor, null: Tensor, scale: float | Tensor) -> Tensor:
    """`null + scale (cond - null)`, the convention of diffusers and MusicLDM.

    It is affine, so guiding x0, eps or v at the same `z` is the same thing.

    Args:
        cond: prediction under the condition.
        null: prediction under the null condition, same shape.
        scale: guidance scale; 1 is no guidance. A tensor must broadcast against `cond`.

    Returns:
        The guided prediction.
    """
    return null + scale * (cond - null)


def scale_from_w(w: float) -> float:
    """The guidance scale `1 + w` of MusicCM's `(1 + w) Psi(c) - w Psi(null)` (equations 5 and 6): w = 2 is scale 3."""
    return 1.0 + w


def with_guidance(
    denoise: Denoise, cond_BD: AnyCondition, null_BD: AnyCondition | None = None, guidance_scale: float | Tensor = 1.0
) -> BoundDenoise:
    """Fix a denoiser's condition, and guide it by one batched call of the (condition, null) pair.

    Args:
        denoise: the denoiser contract.
        cond_BD: conditions, vectors or tokens.
        null_BD: null conditions, a batch of B or 1; needed unless the scale is 1.
        guidance_scale: usual scale (see `guide`), one for all or one an item, `[B]`. At exactly 1 for all the null
            branch is not computed at all.

    Returns:
        `(z_BCTF, t_B, s_B=None) -> x0_BCTF`; s is passed on where it is given. Each call is one network call of batch
        2B, or of batch B at scale 1.

    Raises:
        MusiccmError: if guidance is asked for without a null condition.
    """
    if not isinstance(guidance_scale, Tensor) and guidance_scale == 1.0:
        return lambda z, t, *s: denoise(z, t, cond_BD, *s)
    if null_BD is None:
        raise MusiccmError(
            f"guidance_scale: {guidance_scale} needs the null condition (the embedding of the empty prompt), found "
            "none. Pass null_BD, or guidance_scale=1."
        )
    pair = cat_conditions([cond_BD, expand_condition(null_BD, len(cond_BD))])

    def guided(z: Tensor, t: Tensor, *s: Tensor) -> Tensor:
        cond, null = denoise(torch.cat([z, z]), torch.cat([t, t]), pair, *(torch.cat([x, x]) for x in s)).chunk(2)
        scale = guidance_scale
        return guide(cond, null, expand_to(scale.to(cond), cond) if isinstance(scale, Tensor) else scale)

    return guided


def refuse_guidance(guidance_scale: float | None) -> None:
    """Refuse to guide a distilled student, whose guidance was baked in by its training.

    Args:
        guidance_scale: what the caller asked for; None and 1 both mean no guidance.

    Raises:
        MusiccmError: if it is anything else.
    """
    if guidance_scale is not None and guidance_scale != 1.0:
        raise MusiccmError(
            f"guidance_scale: expected none for a distilled student, found {guidance_scale}. The teacher's guidance "
            "was distilled into its weights and guiding it again overshoots. Drop the option, or distill a student "
            "with the training-time guidance_scale that you want, or one that takes any (distillation.guidance: "
            "variable)."
        )


@dataclass(frozen=True)
class StudentGuidance:
    """How a student is guided, and by which scales.

    Args:
        kind: `fixed`, `variable` or `direct`, see `GUIDANCE_KINDS`.
        scale: The usual scale: what was distilled into a fixed student, the default of the others.
        range: The scales that a variable student was trained on, lowest and highest.

    Raises:
        MusiccmError: An unknown kind, a range that is none, or a default that lies outside of it.
    """

    kind: str = "fixed"
    scale: float = 3.0
    range: tuple[float, float] = (0.0, 6.0)

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE_KINDS:
            raise MusiccmError(f"guidance: expected one of {', '.join(GUIDANCE_KINDS)}, found {self.kind!r}")
        if self.kind != "variable":
            return
        low, high = self.range
        if not 0 <= low < high < math.inf:
            raise MusiccmError("guidance_range: expected the lowest and the highest scale of the training, two "
                               f"ascending numbers from 0 on, found {list(self.range)}")
        if not low <= self.scale <= high:
            raise MusiccmError(f"guidance_scale: expected a default within guidance_range {list(self.range)}, found "
                               f"{self.scale}")

    def chosen(self, asked: float | None) -> float | None:
        """The scale to sample by.

        Args:
            asked: What the caller asked for; None for the student's default.

        Returns:
            The scale; None for a fixed student, which has none to be told.

        Raises:
            MusiccmError: A fixed student is to be guided, or the scale is none, or none that the student knows.
        """
        if self.kind == "fixed":
            refuse_guidance(asked)
            return None
        scale = self.scale if asked is None else asked
        if self.kind == "variable" and not self.range[0] <= scale <= self.range[1]:
            raise MusiccmError(f"guidance_scale: expected a number from {self.range[0]:g} to {self.range[1]:g}, the "
                               f"scales that this student was trained on, found {scale}")
        if not math.isfinite(scale):
            raise MusiccmError(f"guidance_scale: expected a finite number, found {scale}")
        return scale
