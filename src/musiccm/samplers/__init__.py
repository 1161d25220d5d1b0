"""Samplers: plain functions over the denoiser contract."""

from musiccm.samplers.crops import FUSIONS, Crops, fade_profile, fusion_profile
from musiccm.samplers.ddim import sample_ddim, trailing_timesteps
from musiccm.samplers.few_step import StepCallback, sample_few_step
from musiccm.samplers.noise import INITIAL, FrameNoise, NoiseFn, sample_noise, sample_seeds, seeded_noise_fn
from musiccm.samplers.shared_restricted import CondOf, SharedProcess, Stepper, needed_crops, sample_shared
from musiccm.samplers.wavefront import Wavefront

__all__ = [
    "FUSIONS",
    "INITIAL",
    "CondOf",
    "Crops",
    "FrameNoise",
    "NoiseFn",
    "SharedProcess",
    "StepCallback",
    "Stepper",
    "Wavefront",
    "fade_profile",
    "fusion_profile",
    "needed_crops",
    "sample_ddim",
    "sample_few_step",
    "sample_noise",
    "sample_seeds",
    "sample_shared",
    "seeded_noise_fn",
    "trailing_timesteps",
]
