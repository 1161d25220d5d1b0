"""Samplers over the denoiser contract, by name, and pieces of any length sampled crop by crop."""

from musiccm.bounds import FUSIONS, SCHEDULES
from musiccm.samplers.base import Guidance, Sampler, StepCallback, Stepper, renoise
from musiccm.samplers.chunks import ChunkWindows, TokensOf, fill_piece, stream_piece, tokens_of
from musiccm.samplers.crops import Crops, fade_profile, fusion_profile
from musiccm.samplers.evaluations import Evaluations
from musiccm.samplers.held import HeldFrames, fill, holding
from musiccm.samplers.noise import (
    INITIAL,
    FrameNoise,
    NoiseFn,
    SectionNoise,
    checked_seeds,
    prompt_seeds,
    sample_noise,
    sample_seeds,
    seeded_noise_fn,
)
from musiccm.samplers.rules import (
    SAMPLERS,
    Ddim,
    DpmSolver,
    Heun,
    Lcm,
    SamplerSpec,
    Tcd,
    make_sampler,
)
from musiccm.samplers.shared_restricted import CondOf, SharedProcess, needed_crops, sample_shared
from musiccm.samplers.steppers import student_stepper, suited_sampler, teacher_stepper, trailing_timesteps
from musiccm.samplers.wavefront import Wavefront

__all__ = [
    "HeldFrames",
    "FUSIONS",
    "INITIAL",
    "SAMPLERS",
    "SCHEDULES",
    "ChunkWindows",
    "CondOf",
    "Crops",
    "Ddim",
    "DpmSolver",
    "Evaluations",
    "FrameNoise",
    "Guidance",
    "Heun",
    "Lcm",
    "NoiseFn",
    "Sampler",
    "SamplerSpec",
    "SectionNoise",
    "SharedProcess",
    "StepCallback",
    "Stepper",
    "Tcd",
    "TokensOf",
    "Wavefront",
    "checked_seeds",
    "fade_profile",
    "fill",
    "fill_piece",
    "fusion_profile",
    "holding",
    "make_sampler",
    "needed_crops",
    "prompt_seeds",
    "renoise",
    "sample_noise",
    "sample_seeds",
    "sample_shared",
    "seeded_noise_fn",
    "stream_piece",
    "student_stepper",
    "suited_sampler",
    "teacher_stepper",
    "tokens_of",
    "trailing_timesteps",
]
