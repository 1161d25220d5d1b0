"""Samplers: plain functions over the denoiser contract."""

from musiccm.samplers.ddim import sample_ddim, trailing_timesteps
from musiccm.samplers.few_step import StepCallback, sample_few_step
from musiccm.samplers.noise import INITIAL, NoiseFn, sample_noise, seeded_noise_fn

__all__ = [
    "INITIAL",
    "NoiseFn",
    "StepCallback",
    "sample_ddim",
    "sample_few_step",
    "sample_noise",
    "seeded_noise_fn",
    "trailing_timesteps",
]
