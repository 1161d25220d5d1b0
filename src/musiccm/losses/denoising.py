"""The teacher's denoising loss: stratified timesteps and min-SNR weights."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_timesteps(batch: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """One uniform timestep from each of `batch` equal slices of the schedule, in random order.

    Each draw is uniform over the whole schedule, and a batch covers it evenly, which lowers the variance of the loss.

    Args:
        batch: how many.
        num_train_timesteps: length of the schedule.
        generator: source of randomness; its device is the result's.

    Returns:
        int64, [batch], in 0 .. num_train_timesteps - 1.
    """
    device = generator.device
    strata = torch.randperm(batch, generator=generator, device=device)
    position = (strata + torch.rand(batch, generator=generator, device=device)) / batch
    return (position * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def min_snr_weight(alpha_B: Tensor, sigma_B: Tensor, gamma: float, prediction_type: str = "epsilon") -> Tensor:
    """Weight of the squared error of a prediction: `min(SNR, gamma)` of that of x0 (Hang et al. 2023, section 3.4).

    An error e of epsilon is one of `e / sqrt(SNR)` of x0, so that its weight is `min(SNR, gamma) / SNR`; of v it is
    `min(SNR, gamma) / (SNR + 1)`, of the flow `min(SNR, gamma) / (sqrt(SNR) + 1)^2`.

    Args:
        alpha_B: signal levels.
        sigma_B: noise levels.
        gamma: SNR above which the weight of an error of x0 grows no more.
        prediction_type: what has the error: `epsilon`, `v_prediction`, `flow_prediction` or `sample` (x0).

    Returns:
        [B]; in 0..1 but for `sample`, whose weight is in 0..gamma.
    """
    snr_B = (alpha_B / sigma_B).square()
    bounded_B = snr_B.clamp(max=gamma)
    if prediction_type == "sample":
        return bounded_B
    if prediction_type == "v_prediction":
        return bounded_B / (snr_B + 1)
    if prediction_type == "flow_prediction":
        return bounded_B / (alpha_B / sigma_B + 1).square()
    return bounded_B / snr_B


def denoising_loss(
    predicted_BCTF: Tensor,
    noise_BCTF: Tensor,
    alpha_B: Tensor,
    sigma_B: Tensor,
    gamma: float,
    noise_emphasis: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of an epsilon prediction under min-SNR weights times `alpha ** -noise_emphasis`.

    Min-SNR weighs all epsilon errors below its gamma alike, though the same error in epsilon is one of x0 that grows
    with `1 / alpha ** 2`: at the noisiest steps, where the condition decides what the clip will be, a small network's
    x0 then stays worse than the mean of the data. An emphasis of 2 would weigh errors of v, 1 is halfway.

    Args:
        predicted_BCTF: predicted noise.
        noise_BCTF: true noise.
        alpha_B: signal levels of the batch.
        sigma_B: noise levels of the batch.
        gamma: min-SNR gamma.
        noise_emphasis: exponent of the extra weight of noisy steps; 0 for none.

    Returns:
        The weighted mean, and the parts `mse` (unweighted mean) and `mse_B` (each item's).
    """
    mse_B = (predicted_BCTF.float() - noise_BCTF.float()).square().flatten(1).mean(dim=1)
    weight_B = min_snr_weight(alpha_B, sigma_B, gamma) * alpha_B.pow(-noise_emphasis)
    return (weight_B * mse_B).mean(), {"mse": mse_B.mean(), "mse_B": mse_B}
