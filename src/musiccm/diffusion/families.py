"""Which noise process a `scheduler_config.json` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musiccm.diffusion.continuous import Angle, RectifiedFlow
from musiccm.diffusion.process import NoiseProcess
from musiccm.diffusion.schedule import NoiseSchedule

#: By `_class_name`; every other scheduler of diffusers has betas, and is a variance-preserving table.
FAMILIES: dict[str, type[NoiseProcess]] = {
    "FlowMatchEulerDiscreteScheduler": RectifiedFlow,
    "FlowMatchHeunDiscreteScheduler": RectifiedFlow,
    "FlowMatchLCMScheduler": RectifiedFlow,
    "AngleScheduler": Angle,
    "AngleLCMScheduler": Angle,
}


def process_class(config: Mapping[str, Any]) -> type[NoiseProcess]:
    """The class of the noise process that a parsed `scheduler_config.json` describes."""
    return FAMILIES.get(str(config.get("_class_name")), NoiseSchedule)


def noise_process(config: Mapping[str, Any]) -> NoiseProcess:
    """The noise process that a model was trained with.

    Args:
        config: the parsed `scheduler_config.json`.

    Returns:
        A `RectifiedFlow` for diffusers' flow-matching schedulers, an `Angle` for an `AngleScheduler`, else the
        variance-preserving `NoiseSchedule` of its betas.

    Raises:
        MusiccmError: a key is missing or has a value that is not supported.
    """
    return process_class(config).from_config(config)


def prediction_type_of(config: Mapping[str, Any]) -> str:
    """What the network predicts: `prediction_type` where the file states it, else its family's usual one.

    Args:
        config: the parsed `scheduler_config.json`.

    Returns:
        One of `PREDICTION_TYPES`.
    """
    return str(config.get("prediction_type") or process_class(config).usual_prediction)
