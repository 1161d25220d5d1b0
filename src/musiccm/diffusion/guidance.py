"""Classifier-free guidance, in the one convention that this package uses: the *scale*."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.diffusion.condition import AnyCondition, cat_conditions, expand_condition
from musiccm.diffusion.contracts import BoundDenoise, Denoise
from musiccm.errors import MusiccmError


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
    denoise: Denoise, cond_BD: AnyCondition, null_BD: AnyCondition | None = None, guidance_scale: float = 1.0
) -> BoundDenoise:
    """Fix a denoiser's condition, and guide it by one batched call of the (condition, null) pair.

    Args:
        denoise: the denoiser contract.
        cond_BD: conditions, vectors or tokens.
        null_BD: null conditions, a batch of B or 1; needed unless the scale is 1.
        guidance_scale: usual scale (see `guide`). At exactly 1 the null branch is not computed at all.

    Returns:
        `(z_BCTF, t_B, s_B=None) -> x0_BCTF`; s is passed on where it is given. Each call is one network call of batch
        2B, or of batch B at scale 1.

    Raises:
        MusiccmError: if guidance is asked for without a null condition.
    """
    if guidance_scale == 1.0:
        return lambda z, t, *s: denoise(z, t, cond_BD, *s)
    if null_BD is None:
        raise MusiccmError(
            f"guidance_scale: {guidance_scale} needs the null condition (the embedding of the empty prompt), found "
            "none. Pass null_BD, or guidance_scale=1."
        )
    pair = cat_conditions([cond_BD, expand_condition(null_BD, len(cond_BD))])

    def guided(z: Tensor, t: Tensor, *s: Tensor) -> Tensor:
        cond, null = denoise(torch.cat([z, z]), torch.cat([t, t]), pair, *(torch.cat([x, x]) for x in s)).chunk(2)
        return guide(cond, null, guidance_scale)

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
            "with the training-time guidance_scale that you want."
        )
