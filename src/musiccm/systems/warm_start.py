"""The warm start: a student learns to say what its guided teacher says, before any objective asks it for more."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.device import sent
from musiccm.diffusion import AnyCondition, BoundDenoise, NoiseProcess, expand_to, to_eps, training_target
from musiccm.losses.denoising import min_snr_weight
from musiccm.models.denoiser import Denoiser
from musiccm.systems.parallel import normal_like, own_rows

#: Above this share of the timesteps the warm start clamps the teacher's x0.
CLAMP_FROM = 0.9


def warm_start_loss(
    student: Denoiser,
    teacher: BoundDenoise,
    schedule: NoiseProcess,
    z0: Tensor,
    cond_BD: AnyCondition,
    x0_clamp: float,
    generator: torch.Generator,
    snr_bound: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Regression of the student's own prediction onto the teacher's guided one, at uniform timesteps.

    The teacher's x0 is clamped at the noisiest steps, where an epsilon network's x0 divides its error by alpha.

    Args:
        student: the student, with its prediction type.
        teacher: the guided teacher, `(z, t) -> x0`.
        schedule: the noise process of both.
        z0: clean latents, normalised.
        cond_BD: their conditions.
        x0_clamp: bound of the teacher's x0 at the last tenth of the timesteps.
        generator: source of all draws.
        snr_bound: gamma of min-SNR weights of the error, whatever the student predicts (`min_snr_weight`); None weighs
            all timesteps alike. With 5, for v, this is the first stage of ConsistencyTTA (arXiv 2309.10740).

    Returns:
        The mean squared error, and its part for the log.
    """
    steps = schedule.num_train_timesteps
    t_B = sent(own_rows(lambda n: torch.randint(steps, (n,), generator=generator), len(z0)), z0.device)
    z = schedule.add_noise(z0, normal_like(z0, generator), t_B)
    alpha_B, sigma_B = schedule.alpha(t_B), schedule.sigma(t_B)
    with torch.no_grad():
        x0 = teacher(z, t_B)
        x0 = torch.where(expand_to(t_B > CLAMP_FROM * steps, x0), x0.clamp(-x0_clamp, x0_clamp), x0)
        eps = to_eps("sample", x0, z, alpha_B, sigma_B)
        target = training_target(student.prediction_type, x0, eps, alpha_B, sigma_B)
    errors = (student.output(z, t_B, cond_BD) - target).square()
    if snr_bound is not None:
        errors = errors * expand_to(min_snr_weight(alpha_B, sigma_B, snr_bound, student.prediction_type), errors)
    loss = errors.mean()
    return loss, {"loss_warm_start": loss.detach()}
