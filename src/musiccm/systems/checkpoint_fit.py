"""Whether a checkpoint belongs to a configuration, and which key says that it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.systems.settings import Adversarial, Distillation, Optimization

#: Keys that say how weights are read; the others only say how training goes on.
MEANING = ("distillation.prediction_type", "distillation.grid_points", "distillation.sigma_data",
           "distillation.timestep_scaling")
#: Name of a module -> the key that gives it its shape.
SHAPED_BY = {"student": "bundle", "student_ema_target": "bundle", "student_ema_slow": "bundle",
             "discriminator": "adversarial"}


def identity(
    bundle: Bundle, distillation: Distillation, adversarial: Adversarial, optimization: Optimization, seed: int
) -> dict[str, Any]:
    """What the weights in a checkpoint mean and what would go on differently, by key below `model.init_args`.

    Args:
        bundle: The teacher's; known by the bytes of its U-Net and schedule, wherever it lies.
        distillation: As configured.
        adversarial: As configured.
        optimization: As configured.
        seed: Of the draws.

    Returns:
        Plain values.
    """
    d, judged = distillation, adversarial.weight > 0
    return {
        "distillation.prediction_type": d.prediction_type,
        "distillation.grid_points": d.grid_points,
        "distillation.sigma_data": d.sigma_data,
        "distillation.timestep_scaling": d.timestep_scaling,
        "distillation.guidance_scale": d.guidance_scale,
        "distillation.target_ema_decay": d.target_ema_decay,
        "distillation.eval_ema_decay": d.eval_ema_decay,
        "adversarial.features": adversarial.features if judged else None,
        "optimization.accumulate": optimization.accumulate,
        "seed": seed,
        "bundle": f"U-Net and schedule {bundle.content_hash(['unet', 'scheduler'])[:12]}",
    }


def check_fit(
    path: str,
    expected: Mapping[str, Tensor],
    checkpoint: Mapping[str, Any],
    mine: Mapping[str, Any],
    resuming: bool,
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: The file, for the message.
        expected: The state that the configuration builds.
        checkpoint: What was read; `state_dict` with the frozen parts put back, `student` the identity of its run.
        mine: The identity of this run.
        resuming: Whether training goes on; if not, only what changes the weights' meaning matters.

    Raises:
        MusiccmError: Names each key of the configuration that differs, and both values.
    """
    reasons = _other_modules(expected, checkpoint["state_dict"])
    stated = checkpoint.get("student", {})
    for key, value in mine.items():
        differs = key in stated and stated[key] != value
        # Where the heads are missing on one side, that was said above.
        if differs and (resuming or key in MEANING) and None not in (stated[key], value):
            reasons.append(f"model.init_args.{key}: it was trained with {stated[key]!r}, this run has {value!r}")
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise MusiccmError(
            f"{path} does not fit this configuration:{listed}\nResume with the config.yaml that lies beside the "
            "checkpoint's folder, or start another run without --ckpt_path."
        )


def _other_modules(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One reason for every module whose weights differ in name or shape."""
    reasons = []
    for module in sorted({name.partition(".")[0] for name in [*expected, *found]}):
        mine = {name: tuple(value.shape) for name, value in expected.items() if name.partition(".")[0] == module}
        theirs = {name: tuple(value.shape) for name, value in found.items() if name.partition(".")[0] == module}
        key = f"model.init_args.{SHAPED_BY.get(module, module)}"
        if not theirs or not mine:
            key += ".weight" if module == "discriminator" else ""
            lacks, builds = ("lacks", "builds one") if mine else ("holds", "builds none")
            reasons.append(f"{key}: it {lacks} the weights of a {module}, and this configuration {builds}")
            continue
        names = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if names:
            key += ".head_width or .features" if module == "discriminator" else ""
            first = names[0]
            reasons.append(
                f"{key}: {len(names)} weights of the {module} differ, the first being {first}, "
                f"{theirs.get(first, 'absent')} in it and {mine.get(first, 'absent')} here"
            )
    return reasons
