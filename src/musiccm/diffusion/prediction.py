"""Conversions between what a network predicts (eps, v, x0 or the flow) and what the caller wants.

All are solutions of `z = alpha x0 + sigma eps`, `v = alpha eps - sigma x0` with `alpha^2 + sigma^2 = 1` (the
velocity of Salimans and Ho, arXiv 2202.00512), and of the flow `u = eps - x0` (flow matching, arXiv 2210.02747), which
needs no such condition. They run in float32 or better whatever autocast says: at the noisiest
MusicLDM step, x0 from an epsilon network divides by alpha = 0.0119, which turns bf16 rounding into 0.3 of a standard
deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.diffusion.process import NoiseProcess, compute_dtype, expand_to
from musiccm.errors import MusiccmError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def check_prediction_type(prediction_type: str, process: NoiseProcess | None = None) -> str:
    """Return `prediction_type` unchanged, or raise if it is unknown or says too little under a noise process.

    Args:
        prediction_type: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        process: the noise process that it must determine x0 under, at every timestep.

    Raises:
        MusiccmError: if it is not one of these, or does not suit the process.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise MusiccmError(
            f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, found {prediction_type!r}. "
            "Correct the configuration or the scheduler_config.json that it was read from."
        )
    if process is not None and prediction_type not in process.predictions:
        raise MusiccmError(
            f"prediction_type: expected one of {', '.join(process.predictions)} for a {type(process).__name__} "
            f"process, found {prediction_type!r}. Choose one of these for the student, or correct the teacher's "
            "scheduler_config.json."
        )
    return prediction_type


def to_x0(prediction_type: str, output: Tensor, z: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean estimate: `(z - sigma eps)/alpha`, `alpha z - sigma v`, `(z - sigma u)/(alpha + sigma)`, or x0 itself.

    Args:
        prediction_type: what `output` is, one of `PREDICTION_TYPES`.
        output: the network's output `[B, ...]`.
        z: the noisy latents that it was computed from.
        alpha_B: signal coefficients, one a sample.
        sigma_B: noise coefficients, one a sample.

    Returns:
        x0, of the shape of `z`, float32 or better.
    """
    output, z, alpha, sigma = _prepare(prediction_type, output, z, alpha_B, sigma_B)
    if prediction_type == "epsilon":
        return (z - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return alpha * z - sigma * output
    if prediction_type == "flow_prediction":
        return (z - sigma * output) / (alpha + sigma)
    return output


def to_eps(prediction_type: str, output: Tensor, z: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
    """The noise estimate: eps itself, `sigma z + alpha v`, `(z + alpha u)/(alpha + sigma)`, or `(z - alpha x0)/sigma`.

    Arguments as `to_x0`.

    Returns:
        eps, of the shape of `z`, float32 or better.
    """
    output, z, alpha, sigma = _prepare(prediction_type, output, z, alpha_B, sigma_B)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return sigma * z + alpha * output
    if prediction_type == "flow_prediction":
        return (z + alpha * output) / (alpha + sigma)
    return (z - alpha * output) / sigma


def to_v(prediction_type: str, output: Tensor, z: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
    """The velocity `alpha eps - sigma x0`: `(eps - sigma z)/alpha`, the output itself, or `(alpha z - x0)/sigma`.

    Arguments as `to_x0`. The short forms follow from `alpha^2 + sigma^2 = 1`.

    Returns:
        v, of the shape of `z`, float32 or better.
    """
    output, z, alpha, sigma = _prepare(prediction_type, output, z, alpha_B, sigma_B)
    if prediction_type == "epsilon":
        return (output - sigma * z) / alpha
    if prediction_type == "v_prediction":
        return output
    if prediction_type == "flow_prediction":
        return (alpha * (z + alpha * output) - sigma * (z - sigma * output)) / (alpha + sigma)
    return (alpha * z - output) / sigma


def training_target(prediction_type: str, x0: Tensor, eps: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
    """What a network of this prediction type regresses onto, given the true x0 and eps.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        x0: clean latents `[B, ...]`.
        eps: the noise that was added.
        alpha_B: signal coefficients, one a sample.
        sigma_B: noise coefficients, one a sample.

    Returns:
        The regression target, of the shape of `x0`.
    """
    eps, x0, alpha, sigma = _prepare(prediction_type, eps, x0, alpha_B, sigma_B)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha * eps - sigma * x0
    if prediction_type == "flow_prediction":
        return eps - x0
    return x0


def _prepare(
    prediction_type: str, output: Tensor, z: Tensor, alpha_B: Tensor, sigma_B: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_prediction_type(prediction_type)
    dtype = torch.promote_types(compute_dtype(z), compute_dtype(output))
    return output.to(dtype), z.to(dtype), expand_to(alpha_B, z).to(dtype), expand_to(sigma_B, z).to(dtype)
