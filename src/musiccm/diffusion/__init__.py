"""Diffusion maths on tensors: noise processes, prediction types, consistency boundary, solvers, guidance, grids."""

from musiccm.bounds import ANGLE_SCHEDULES
from musiccm.diffusion.angles import (
    angle_timesteps,
    noised_at,
    rotate,
    schedule_angles,
    spread_chunks,
)
from musiccm.diffusion.boundary import consistency_boundary
from musiccm.diffusion.condition import (
    AnyCondition,
    Condition,
    cat_conditions,
    choose_condition,
    expand_condition,
    gives_tokens,
    pool_condition,
    scale_of,
    stack_conditions,
    told_scale,
    without_scale,
)
from musiccm.diffusion.continuous import Angle, RectifiedFlow
from musiccm.diffusion.contracts import BoundDenoise, ConsistencyFunction, Denoise
from musiccm.diffusion.families import noise_process, prediction_type_of, process_class
from musiccm.diffusion.grid import (
    GRIDS,
    TIMESTEP_MODES,
    check_skip,
    sample_grid_index,
    sampling_timesteps,
    student_grid,
)
from musiccm.diffusion.guidance import (
    GUIDANCE_KINDS,
    StudentGuidance,
    guide,
    refuse_guidance,
    scale_from_w,
    with_guidance,
)
from musiccm.diffusion.prediction import (
    PREDICTION_TYPES,
    check_prediction_type,
    to_eps,
    to_v,
    to_x0,
    training_target,
)
from musiccm.diffusion.process import NoiseProcess, compute_dtype, expand_to
from musiccm.diffusion.schedule import NoiseSchedule
from musiccm.diffusion.solvers import (
    SOLVERS,
    ddim_jump,
    heun_jump,
    jump_between,
    jump_to_target,
    predict_at,
    solver_jump,
)

__all__ = [
    "ANGLE_SCHEDULES",
    "GRIDS",
    "GUIDANCE_KINDS",
    "PREDICTION_TYPES",
    "SOLVERS",
    "TIMESTEP_MODES",
    "Angle",
    "AnyCondition",
    "BoundDenoise",
    "Condition",
    "ConsistencyFunction",
    "Denoise",
    "NoiseProcess",
    "NoiseSchedule",
    "RectifiedFlow",
    "StudentGuidance",
    "angle_timesteps",
    "cat_conditions",
    "check_prediction_type",
    "check_skip",
    "choose_condition",
    "compute_dtype",
    "consistency_boundary",
    "ddim_jump",
    "expand_condition",
    "expand_to",
    "gives_tokens",
    "guide",
    "heun_jump",
    "jump_between",
    "jump_to_target",
    "noise_process",
    "noised_at",
    "pool_condition",
    "predict_at",
    "prediction_type_of",
    "process_class",
    "refuse_guidance",
    "rotate",
    "sample_grid_index",
    "sampling_timesteps",
    "scale_from_w",
    "scale_of",
    "schedule_angles",
    "solver_jump",
    "spread_chunks",
    "stack_conditions",
    "student_grid",
    "to_eps",
    "to_v",
    "to_x0",
    "told_scale",
    "training_target",
    "with_guidance",
    "without_scale",
]
