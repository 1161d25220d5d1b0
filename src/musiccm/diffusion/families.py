"""Which noise process a `scheduler_config.json` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from musiccm.diffusion.continuous import Angle, RectifiedFlow
from musiccm.diffusion.process import NoiseProcess
from musiccm.diffusion.schedule import NoiseSchedule

# By `_class_name`; every other scheduler of diffusers has betas, and is a variance-preserving table.
_FAMILIES: dict[str, Callable[[Mapping[str, Any]], NoiseProcess]] = {
    "FlowMatchEulerDiscreteScheduler": RectifiedFlow.from_config,
    "FlowMatchHeunDiscreteScheduler": RectifiedFlow.from_config,
    "FlowMatchLCMScheduler": RectifiedFlow.from_config,
    "AngleScheduler": Angle.from_config,
    "AngleLCMScheduler": Angle.from_config,
}


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
    return _FAMILIES.get(str(config.get("_class_name")), NoiseSchedule.from_config)(config)


def prediction_type_of(config: Mapping[str, Any]) -> str:
    """What the network predicts: `prediction_type` where the file states it, else its family's usual one.

    Args:
        config: the parsed `scheduler_config.json`.

    Returns:
        One of `PREDICTION_TYPES`.
    """
    name = str(config.get("_class_name"))
    usual = "v_prediction" if name.startswith("Angle") else "flow_prediction" if name in _FAMILIES else "epsilon"
    return str(config.get("prediction_type") or usual)
