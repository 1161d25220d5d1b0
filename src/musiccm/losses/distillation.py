"""The consistency distillation loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

DISTANCES = ("pseudo_huber", "squared")


def distance(prediction: Tensor, target: Tensor, kind: str = "pseudo_huber", huber_h: float = 1e-3) -> Tensor:
    """Element-wise `d(prediction, target)` in float32 (or float64 if either is).

    `squared`: `e^2`. `pseudo_huber`: `sqrt(e^2 + h^2) - h`, taken of each element as LCM's training code does (not of
    each sample's norm as in arXiv 2310.14189), so that one bad element does not lower the pull on the others. With
    h = 1e-3 it is the absolute error everywhere but close to 0, where it is smooth.

    Args:
        prediction: any shape.
        target: the same shape.
        kind: `pseudo_huber` or `squared`.
        huber_h: the h above, in the units of the data.

    Returns:
        Distances of the same shape.

    Raises:
        MusiccmError: if `kind` is unknown or the shapes differ.
    """
    if prediction.shape != target.shape:
        raise MusiccmError(
            f"distillation loss: expected equal shapes, found {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    error = prediction.to(dtype) - target.to(dtype)
    if kind == "squared":
        return error.square()
    if kind == "pseudo_huber":
        return (error.square() + huber_h**2).sqrt() - huber_h
    raise MusiccmError(f"distillation distance: expected one of {', '.join(DISTANCES)}, found {kind!r}.")


def distillation_loss(
    prediction: Tensor,
    target: Tensor,
    kind: str | Callable[[Tensor, Tensor], Tensor] = "pseudo_huber",
    huber_h: float = 1e-3,
    weight_B: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`E d(f_theta(z_{n+1}), stopgrad f_ema(z_hat))`, equation 7 of LCM (arXiv 2310.04378) with the teacher guided.

    Args:
        prediction: the student's `f_theta`, `[B, ...]`.
        target: the EMA student's answer at the solver's result; detached here.
        kind: see `distance`; or an object that takes prediction and target and returns distances, of any shape.
        huber_h: see `distance`.
        weight_B: weight of each item's mean; None weighs all alike.

    Returns:
        `(total, parts)`: the mean over elements and samples, and `{"loss_distil": total}` detached.

    Raises:
        MusiccmError: as `distance`; or items have weights, and an object gives distances that are not theirs.
    """
    target = target.detach()
    distances = distance(prediction, target, kind, huber_h) if isinstance(kind, str) else kind(prediction, target)
    if weight_B is None:
        total = distances.mean()
    else:
        if distances.shape[:1] != weight_B.shape:
            raise MusiccmError(f"distillation distance: expected distances of each of {len(weight_B)} items, which "
                               f"have weights of their own, found them of shape {tuple(distances.shape)}; weigh items "
                               "alike, or keep the batch's axis.")
        total = (weight_B * distances.flatten(1).mean(1) if distances.ndim > 1 else weight_B * distances).mean()
    return total, {"loss_distil": total.detach()}
