"""Jumps along the probability-flow ODE: DDIM, Heun, and the targets that are made of several of them."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.diffusion.contracts import BoundDenoise
from musiccm.diffusion.prediction import to_eps
from musiccm.diffusion.process import NoiseProcess, compute_dtype, expand_to
from musiccm.errors import MusiccmError

SOLVERS = ("ddim", "heun")


def ddim_jump(schedule: NoiseProcess, x0: Tensor, eps: Tensor, t_next_B: Tensor) -> Tensor:
    """One deterministic DDIM jump: `z_hat = alpha_n x0 + sigma_n eps` (arXiv 2010.02502, equation 12, eta = 0).

    It is the Euler step of `d(z/alpha) / d(sigma/alpha) = eps`, exact where eps is constant along the path.

    Args:
        schedule: the teacher's noise schedule.
        x0: clean estimate `[B, ...]` at the start of the jump.
        eps: noise estimate there.
        t_next_B: timesteps to land on; t <= 0 means clean and returns `x0`.

    Returns:
        Latents at `t_next_B`.
    """
    dtype = compute_dtype(x0)
    alpha = expand_to(schedule.target_alpha(t_next_B, dtype), x0)
    sigma = expand_to(schedule.target_sigma(t_next_B, dtype), x0)
    return alpha * x0.to(dtype) + sigma * eps.to(dtype)


def predict_at(denoise: BoundDenoise, schedule: NoiseProcess, z: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Call a denoiser and derive the noise estimate that belongs to its x0.

    Args:
        denoise: `(z, t) -> x0`.
        schedule: the noise schedule of `z`.
        z: noisy latents `[B, ...]`.
        t_B: their timesteps.

    Returns:
        `(x0, eps)` with `z = alpha x0 + sigma eps`.
    """
    x0 = denoise(z, t_B)
    dtype = compute_dtype(z)
    return x0.to(dtype), to_eps("sample", x0, z, schedule.alpha(t_B, dtype), schedule.sigma(t_B, dtype))


def jump_between(denoise: BoundDenoise, schedule: NoiseProcess, z: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
    """The jump that a denoiser of two times describes: from t to s in one call, exact if the network is.

    Args:
        denoise: `(z, t, s) -> x0`.
        schedule: the noise schedule.
        z: noisy latents `[B, ...]`.
        t_B: their timesteps.
        s_B: timesteps to land on, below `t_B`; s <= 0 means clean.

    Returns:
        Latents at `s_B`.
    """
    x0 = denoise(z, t_B, s_B)
    dtype = compute_dtype(z)
    eps = to_eps("sample", x0, z, schedule.alpha(t_B, dtype), schedule.sigma(t_B, dtype))
    return ddim_jump(schedule, x0, eps, s_B)


def heun_jump(denoise: BoundDenoise, schedule: NoiseProcess, z: Tensor, t_B: Tensor, t_next_B: Tensor) -> Tensor:
    """One Heun jump in DDIM's own variables: the trapezoid rule on `d(z/alpha) / d(sigma/alpha) = eps`.

    Two network calls, second order. Where the jump lands on clean there is no noise left to predict, so the jump stays
    the first-order DDIM one there (as EDM's last step does, arXiv 2206.00364, algorithm 1); so it does where it starts
    at pure noise, of which a rectified flow has a timestep.

    Args:
        denoise: `(z, t) -> x0`.
        schedule: the noise schedule.
        z: noisy latents `[B, ...]`.
        t_B: their timesteps.
        t_next_B: timesteps to land on, below `t_B`; t <= 0 means clean.

    Returns:
        Latents at `t_next_B`.
    """
    x0, eps = predict_at(denoise, schedule, z, t_B)
    z_euler = ddim_jump(schedule, x0, eps, t_next_B)
    # Samples that land on clean take part in the second call for the batch's shape alone; their correction is dropped.
    t_eval = t_next_B.clamp_min(0)
    _, eps_next = predict_at(denoise, schedule, z_euler, t_eval)
    dtype = compute_dtype(z)
    alpha, sigma = schedule.alpha(t_B, dtype), schedule.sigma(t_B, dtype)
    alpha_next, sigma_next = schedule.alpha(t_eval, dtype), schedule.sigma(t_eval, dtype)
    # alpha' (rho' - rho), rho = sigma/alpha, multiplied out so that nothing large is subtracted from something large.
    width = expand_to(sigma_next - alpha_next * sigma / alpha, z)
    z_heun = z_euler + 0.5 * width * (eps_next - eps)
    # Out of pure noise rho is infinite, and the jump stays first-order as well.
    return torch.where(expand_to((t_next_B <= 0) | (alpha == 0), z), z_euler, z_heun)


def solver_jump(
    denoise: BoundDenoise, schedule: NoiseProcess, z: Tensor, t_B: Tensor, t_next_B: Tensor, solver: str = "ddim"
) -> Tensor:
    """One jump of a solver, whose whole state is its arguments: batches of other timesteps never meet.

    Args:
        denoise: the teacher, `(z, t) -> x0`; guide it with `with_guidance`.
        schedule: the teacher's noise schedule.
        z: noisy latents `[B, ...]`.
        t_B: their timesteps, which may differ within the batch, and lie between whole ones.
        t_next_B: timesteps to land on, below `t_B`; t <= 0 means clean.
        solver: `ddim` (one network call) or `heun` (two).

    Returns:
        Latents at `t_next_B`.

    Raises:
        MusiccmError: if `solver` is not one of these.
    """
    if solver == "heun":
        return heun_jump(denoise, schedule, z, t_B, t_next_B)
    if solver == "ddim":
        return ddim_jump(schedule, *predict_at(denoise, schedule, z, t_B), t_next_B)
    raise MusiccmError(f"solver: expected one of {', '.join(SOLVERS)}, found {solver!r}.")


def jump_to_target(
    denoise: BoundDenoise,
    schedule: NoiseProcess,
    z: Tensor,
    t_B: Tensor,
    skip: int,
    jumps: int | str = 1,
    solver: str = "ddim",
    lowest_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`Psi^m`: m solver jumps of `skip` training timesteps each, stopping at clean, or above it.

    m = 1 with skip 20 is the target of MusicCM (arXiv 2404.13358) and LCM; `to_zero` walks until every sample is clean,
    whatever its start.
    The number of network calls depends on the arguments alone, never on `t_B`: m for DDIM, 2 m for Heun, with
    m = ceil((num_train_timesteps - 1) / skip) for `to_zero`. Samples that have arrived stay as they are.

    Args:
        denoise: the teacher, `(z, t) -> x0`; guide it with `with_guidance`.
        schedule: the teacher's noise schedule.
        z: noisy latents `[B, ...]`.
        t_B: their timesteps, which may differ within the batch.
        skip: jump size k in training timesteps.
        jumps: m, or `"to_zero"`.
        solver: `ddim` or `heun`.
        lowest_B: timesteps at which to stop; clean if left out.

    Returns:
        `(z_hat, t_next_B)`: latents and the timesteps they are at, 0 meaning clean.

    Raises:
        MusiccmError: if `skip`, `jumps` or `solver` is not as described.
    """
    if skip < 1:
        raise MusiccmError(f"skip: expected a positive number of training timesteps, found {skip}.")
    if solver not in SOLVERS:
        raise MusiccmError(f"solver: expected one of {', '.join(SOLVERS)}, found {solver!r}.")
    if jumps == "to_zero":
        count = -(-(schedule.num_train_timesteps - 1) // skip)
    elif isinstance(jumps, int) and not isinstance(jumps, bool) and jumps >= 1:
        count = jumps
    else:
        raise MusiccmError(f"jumps: expected a positive whole number or 'to_zero', found {jumps!r}.")
    lowest_B = torch.zeros_like(t_B) if lowest_B is None else lowest_B
    for _ in range(count):
        t_next_B = torch.maximum(t_B - skip, lowest_B)
        z_next = solver_jump(denoise, schedule, z, t_B, t_next_B, solver)
        z = torch.where(expand_to(t_B <= lowest_B, z), z.to(z_next.dtype), z_next)
        t_B = t_next_B
    return z, t_B
