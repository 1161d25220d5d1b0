"""A student's weights, from a run's checkpoint or from what was exported of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError, reason

if TYPE_CHECKING:
    from torch import Tensor

    from musiccm.systems.settings import Distillation

#: Settings of `distillation` that a student's weights have learned beside what they predict.
LEARNED = ("guidance", "guidance_scale", "guidance_range", "grid", "grid_points")
STUDENT_WEIGHTS = "student_ema_slow.module."
"""Prefix, in a Lightning checkpoint, of the averaged U-Net that the evaluator measures."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint of a distillation; nothing in the file is executed.

    Args:
        path: The file.

    Returns:
        Its content, with a `state_dict`.

    Raises:
        MusiccmError: If the file is missing, unreadable, or of another system.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        hint = "runs keep theirs in lightning_logs/NAME/version_N/checkpoints"
        raise MusiccmError(f"{path}: no such checkpoint; {hint}") from None
    except Exception as error:  # a broken file shows as whatever the unpickler tripped over
        raise MusiccmError(f"{path}: not a readable checkpoint ({reason(error)})") from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise MusiccmError(f"{path}: holds no state_dict; expected a checkpoint of the distillation "
                           "(musiccm.systems.musiccm.MusicCM)")
    return dict(checkpoint)


def read_student(path: Path) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """The averaged student's weights, the step and what the weights mean, from a Lightning checkpoint.

    Raises:
        MusiccmError: As `read_checkpoint`; or it holds no student.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint["state_dict"]
    state = {k.removeprefix(STUDENT_WEIGHTS): v for k, v in weights.items() if k.startswith(STUDENT_WEIGHTS)}
    if not state:
        raise MusiccmError(f"{path}: holds no '{STUDENT_WEIGHTS}*' weights; expected a checkpoint of the distillation "
                           "(musiccm.systems.musiccm.MusicCM)")
    return state, int(checkpoint.get("global_step", 0)), dict(checkpoint.get("student", {}))


def load_student(
    teacher: Any, state: dict[str, Tensor], path: Path, lora: Any = None, trained_on: str | None = None,
    remedy: str = "name the bundle of the run by --bundle",
) -> Any:
    """A U-Net of the teacher's shape with the student's weights, an adapter merged into them.

    Args:
        teacher: The teacher's bundle.
        state: The student's weights, or its adapter's.
        path: Where they come from, for messages.
        lora: The adapter, if it is one.
        trained_on: What the checkpoint says of the weights below it.
        remedy: What to do where teacher and student do not fit, for messages.

    Raises:
        MusiccmError: If the weights are of another shape than the teacher, or an adapter of another teacher.
    """
    import copy

    if lora is not None:
        from musiccm.models.lora import load_adapter, merged, with_adapter
        from musiccm.systems.checkpoint_fit import bundle_identity

        if bundle_identity(teacher) != trained_on:
            raise MusiccmError(f"{path}: its adapter was trained on {trained_on}, but {teacher.path} has "
                               f"{bundle_identity(teacher)}; {remedy}")
        adapted = with_adapter(teacher.network, lora)
        load_adapter(adapted, state)
        return merged(adapted)
    from musiccm.models.denoiser import takes_scale
    from musiccm.models.guidance_branch import is_branch, with_guidance_branch

    if any(map(is_branch, state)) and not takes_scale(teacher.config(teacher.kind.network)):
        unet: Any = with_guidance_branch(teacher.unet, 0, str(path))
    else:
        unet = copy.deepcopy(teacher.network)
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise MusiccmError(f"{path}: its weights do not fit the teacher {teacher.path} ({reason}); "
                           f"{remedy}") from None
    return unet


def check_checkpoint(key: str, named: str | None) -> None:
    """Refuse a checkpoint that a run is to start from and that is not there, before anything is loaded.

    Args:
        key: The setting, for messages.
        named: What it says: a checkpoint, an exported student's folder or name, or nothing.

    Raises:
        MusiccmError: It names a `.ckpt` that is no file.
    """
    if named is not None and Path(named).suffix == ".ckpt" and not Path(named).is_file():
        raise MusiccmError(f"{key}: {named}: no such checkpoint; train what this run starts from first, or name its "
                           "checkpoint or exported folder")


def starting_weights(start: str, teacher: Any, distillation: Distillation, network: Any) -> dict[str, Tensor]:
    """The U-Net that a student starts from instead of its teacher's weights.

    One that learned another guidance or grid is taken with a warning: the training goes over to those of the new one.

    Args:
        start: A checkpoint of a distillation (its slow average is taken), or an exported student's folder or name.
        teacher: The teacher's bundle.
        distillation: Of the new student.
        network: The new student's. Where it has a guidance branch and the weights have none, its own stays as it is.

    Returns:
        The weights, in float32.

    Raises:
        MusiccmError: It is no student, of another shape, predicts something else, or has a guidance branch that the new
            student has not.
    """
    from musiccm.models.bundle import Bundle
    from musiccm.models.bundle.student_record import guidance_record, is_student, recorded_guidance
    from musiccm.models.guidance_branch import is_branch
    from musiccm.models.lora import Lora
    from musiccm.systems.parallel import warn

    check_checkpoint("distillation.start", start)
    remedy = ("distillation.start must name a student of this teacher (model.init_args.bundle); name another, or leave "
              "it out to start from the teacher")
    if Path(start).is_file():
        state, _, identity = read_student(Path(start))
        lora = identity.get("distillation.lora")
        unet = load_student(teacher, state, Path(start), lora and Lora(**lora), identity.get("bundle"), remedy)
        predicts = identity.get("distillation.prediction_type", identity.get("prediction_type"))
        learned = {key: identity.get(f"distillation.{key}") for key in LEARNED}
    else:
        student = Bundle.from_pretrained(start, [teacher.kind.network, "scheduler"])
        if not is_student(student.scheduler_config):
            raise MusiccmError(f"distillation.start: {start} is no distilled student; leave the key out to start from "
                               "the teacher")
        unet = load_student(teacher, student.network.state_dict(), Path(start), remedy=remedy)
        predicts, scheduler = student.prediction_type, student.scheduler_config
        learned = {**guidance_record(recorded_guidance(student.settings.get("distillation", {}))),
                   "grid": scheduler.get("grid", "even"), "grid_points": scheduler.get("original_inference_steps")}
    if predicts != distillation.prediction_type:
        raise MusiccmError(f"distillation.start: {start} predicts {predicts!r}, but distillation.prediction_type is "
                           f"{distillation.prediction_type!r}; set it to what the student predicts")
    weights, new = unet.float().state_dict(), network.state_dict()
    branch = {name: value for name, value in new.items() if is_branch(name)}
    if not branch and any(map(is_branch, weights)):
        raise MusiccmError(f"distillation.start: {start} has a guidance branch, and this student none; expected "
                           "distillation.guidance: variable")
    if others := learned_otherwise(learned, distillation):
        warn(f"distillation.start: {start} was trained with {', '.join(others)}. This run goes on by its own settings, "
             "which its student has yet to learn")
    return {**branch, **weights}


def learned_otherwise(learned: Mapping[str, Any], distillation: Distillation) -> list[str]:
    """In which settings a student was trained otherwise than another one is to be.

    Args:
        learned: Those of `LEARNED`; what is None or not there, as in older checkpoints, is not compared.
        distillation: Of the other one.

    Returns:
        Such as `grid_points 50 (here 25)`.
    """
    mine = {key: getattr(distillation, key) for key in LEARNED}
    kinds = {learned.get("guidance"), distillation.guidance}
    # a scale is learned where it is fixed, and a range where it is not
    compared = set(LEARNED) - ({"guidance_scale"} if kinds != {"fixed"} else set())
    compared -= {"guidance_range"} if kinds != {"variable"} else set()
    found = {key: value for key in LEARNED if key in compared and (value := learned.get(key)) is not None}
    return [f"{key} {value} (here {mine[key]})" for key, value in found.items()
            if (list(value) != list(mine[key]) if key == "guidance_range" else value != mine[key])]
