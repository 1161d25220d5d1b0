"""Whether a checkpoint belongs to a configuration, and which key says that it does not."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from pytorch_lightning.utilities.parsing import collect_init_args
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.systems.settings import Adversarial, Distillation, Optimization

#: Keys that say how weights are read; the others only say how training goes on.
MEANING = ("distillation.prediction_type", "distillation.grid_points", "distillation.grid",
           "distillation.sigma_data", "distillation.timestep_scaling", "distillation.guidance",
           "distillation.guidance_range", "distillation.lora")
ADAPTER = MEANING[-1]
#: What a resumed run may change, and why: these say how a step is computed, and its numbers stay (but for rounding);
#: `start` is read by a new run alone.
#: Of the trainer and the data, which are not compared here: `max_steps` (curriculum and learning rate are shares of it,
#: so that it stretches what is left), everything about logging, validation and checkpoints, devices and workers.
MAY_CHANGE = ("optimization.half_frozen", "optimization.gradient_checkpointing", "optimization.compile",
              "optimization.channels_last", "distillation.start")
#: What checkpoints stated before they stated every setting; of the others, theirs say nothing.
ONCE_STATED = (*MEANING, "distillation.guidance_scale", "distillation.target_ema_decay", "distillation.eval_ema_decay",
               "adversarial.features", "optimization.accumulate", "seed", "bundle")
#: A setting that every later checkpoint states.
LATER = "distillation.weight"
#: What `identity` knows of by itself; of a system's other arguments it is told.
SHARED = ("bundle", "distillation", "adversarial", "optimization", "seed", "teacher")
GROUPS: dict[str, type] = {"distillation": Distillation, "adversarial": Adversarial, "optimization": Optimization}
#: The objective, and whose the checkpoints are that do not state it.
CLASS, FIRST_CLASS = "class_path", "musiccm.systems.musiccm.MusicCM"
#: Name of a module -> the key that gives it its shape.
SHAPED_BY = {"student": "bundle", "student_ema_target": "bundle", "student_ema_slow": "bundle",
             "discriminator": "adversarial"}


def plain(value: Any, weights: bool = True) -> Any:
    """A setting as a checkpoint holds it: numbers, texts, lists and mappings alone; of modules, a hash of `weights`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), weights) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, weights) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item, weights) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else _described(value, weights)


def class_path(kind: type) -> str:
    """A class as an experiment names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _described(part: Any, weights: bool) -> dict[str, Any]:
    """A part that the configuration gave as an object: its class, its own plain attributes and its weights' hash."""
    settings = {name: value for name, value in getattr(part, "__dict__", {}).items()
                if not name.startswith("_") and name != "training" and isinstance(value, str | int | float)}
    found = {"class_path": class_path(type(part)), **settings}
    if isinstance(part, nn.Module) and weights:
        digest = hashlib.sha256()
        for name, tensor in sorted(part.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
        found["weights"] = digest.hexdigest()[:12]
    return found


def arguments(constructor: FrameType | None, kind: type) -> dict[str, Any]:
    """What the constructors of an object were given, by name, defaults filled in.

    Args:
        constructor: The frame of `kind.__init__`.
        kind: The base class; the constructors of its subclasses are those that called it.
    """
    assert constructor is not None
    found = collect_init_args(constructor, [], classes=(kind,))
    return {name: value for given in found for name, value in given.items()}


def argument_defaults(kind: type, base: type) -> dict[str, Any]:
    """The defaults of the arguments of a class and of its bases down from `base`, by name, as checkpoints hold them."""
    made = [cls for cls in reversed(kind.__mro__) if issubclass(cls, base)]
    found = [inspect.signature(cls.__init__).parameters for cls in made]  # type: ignore[misc]
    return {name: plain(parameter.default, weights=False) for parameters in found
            for name, parameter in parameters.items() if parameter.default is not parameter.empty}


def field_defaults(kind: Any) -> dict[str, Any]:
    """The defaults of a settings class, as checkpoints hold them; none where it cannot be built without arguments."""
    needed = any(field.default is MISSING and field.default_factory is MISSING for field in fields(kind))
    return {} if needed else plain(kind())


def hints(kind: Any) -> dict[str, Any]:
    """The types of a settings class' fields or of a function's arguments, by name, as far as they can be resolved."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):  # names that its module imports for type checkers alone
        return {}


def completed(stated: Any, hint: Any) -> Any:
    """A setting that a checkpoint states, with what its settings class got later: the defaults, at any depth.

    Args:
        stated: As `plain` gave it.
        hint: The type of the setting here, such as `list[Phase]` or `Lora | None`.
    """
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(stated, Mapping):
        kinds, later = hints(hint), {}
        for field in fields(hint):
            if field.default_factory is not MISSING:
                later[field.name] = plain(field.default_factory())
            elif field.default is not MISSING:
                later[field.name] = plain(field.default)
        return {**later, **{key: completed(value, kinds.get(key)) for key, value in stated.items()}}
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for kind in inner:
            stated = completed(stated, kind)
    elif isinstance(stated, list) and origin in (list, tuple, Sequence):
        return [completed(item, inner[0]) for item in stated]
    return stated


def identity(
    bundle: Bundle, distillation: Distillation, adversarial: Adversarial, optimization: Optimization, seed: int
) -> dict[str, Any]:
    """What the weights in a checkpoint mean and what would go on differently, by key below `model.init_args`.

    Every setting is in it, but for those that `MAY_CHANGE` and those that this configuration makes no use of.

    Args:
        bundle: The teacher's; known by the bytes of its U-Net and schedule, wherever it lies.
        distillation: As configured.
        adversarial: As configured.
        optimization: As configured.
        seed: Of the draws.

    Returns:
        Plain values.
    """
    groups = {"distillation": distillation, "adversarial": adversarial, "optimization": optimization}
    found = {f"{name}.{key}": value for name, group in groups.items() for key, value in plain(group).items()}
    unused = {
        "distillation.huber_h": distillation.distance != "pseudo_huber",
        "distillation.x0_clamp": distillation.warm_start_steps == 0,
        "distillation.warm_start_snr": distillation.warm_start_steps == 0,
        "distillation.guidance_range": distillation.guidance != "variable",
        "distillation.chunks": not distillation.continuation_share + distillation.inpainting_share,
        "optimization.final_lr_share": optimization.decay_share == 0,
        "optimization.decay": optimization.decay_share == 0,
        **{key: adversarial.weight == 0 for key in found if key.startswith("adversarial.")},
        **dict.fromkeys(MAY_CHANGE, True),
    }
    return {
        **{key: value for key, value in found.items() if not unused.get(key)},
        "seed": seed,
        "bundle": bundle_identity(bundle),
    }


def bundle_identity(bundle: Bundle) -> str:
    """The teacher's bundle as checkpoints state it: by its bytes, wherever it lies."""
    name = "U-Net" if bundle.kind.network == "unet" else bundle.kind.network
    return f"{name} and schedule {bundle.denoiser_hash()[:12]}"


def check_fit(
    path: str,
    expected: Mapping[str, Tensor],
    checkpoint: Mapping[str, Any],
    mine: Mapping[str, Any],
    resuming: bool,
    say: Callable[[str], None],
    own: Mapping[str, type] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: The file, for the message.
        expected: The state that the configuration builds.
        checkpoint: What was read; `state_dict` with the frozen parts put back, `student` the identity of its run.
        mine: The identity of this run.
        resuming: Whether training goes on; if not, only what changes the weights' meaning matters.
        say: Told once of settings that an older checkpoint does not state.
        own: The objective's own groups of settings: their classes, by name.
        defaults: Of the objective's own arguments, by name.

    Raises:
        MusiccmError: Names each key of the configuration that differs, and both values.
    """
    groups = {**GROUPS, **(own or {})}
    kinds = {f"{name}.{key}": hint for name, kind in groups.items() for key, hint in hints(kind).items()}
    # before there were any others
    stated: dict[str, Any] = {ADAPTER: None, "distillation.guidance": "fixed", "distillation.grid": "even"}
    stated |= {key: completed(value, kinds.get(key)) for key, value in checkpoint.get("student", {}).items()
               # where the heads are missing on one side, `_other_modules` says so
               if not (key == "adversarial.features" and value is None)}
    adapter = mine.get(ADAPTER)
    reasons = _other_modules(expected, checkpoint["state_dict"], without_student=stated[ADAPTER] != adapter)
    if resuming:
        later = {f"{name}.{key}": value for name, kind in groups.items() for key, value in field_defaults(kind).items()}
        if CLASS in stated:  # which came with the objective's own arguments
            later |= {key: value for key, value in (defaults or {}).items() if key not in SHARED}
        elif all(key.startswith(tuple(f"{name}." for name in GROUPS)) for key in stated if "." in key):
            stated[CLASS] = FIRST_CLASS
        stated = with_defaults(path, stated, mine, later, say)
    # an adapter means nothing without the weights that it was trained on
    meaning = (*MEANING, "bundle") if adapter else MEANING
    reasons += differences(stated, {key: value for key, value in mine.items() if resuming or key in meaning})
    refuse(path, reasons)


def with_defaults(
    path: str, stated: Mapping[str, Any], mine: Mapping[str, Any], defaults: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What an older checkpoint implies: of settings that came after it, their defaults.

    Args:
        path: The file, for the message.
        stated: What it states.
        mine: What this run states.
        defaults: Of all settings.
        say: Told once which settings cannot be compared.

    Returns:
        What it states and implies.
    """
    if LATER in stated:
        # without heads it states none of their settings, and their own absence has been said
        has_heads = any(key.startswith("adversarial.") for key in stated)
        implied = {key: defaults[key] for key in mine if key in defaults and key not in UNUSABLE
                   and (has_heads or not key.startswith("adversarial."))}
        return {**implied, **stated}
    unknown = [f"{key} = {value!r}" for key, value in mine.items() if key not in stated and key not in ONCE_STATED]
    if unknown:
        say(f"{path} was written by an older version, which did not note all settings. Taken to be as in this run: "
            + ", ".join(unknown))
    return dict(stated)


#: Settings that a checkpoint leaves out where its run made no use of them; the one that decides about it is compared.
UNUSABLE = ("distillation.huber_h", "distillation.x0_clamp", "distillation.guidance_range",
            "optimization.final_lr_share")


def differences(stated: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """One reason for every key that both state, with other values."""
    return [f"model.{'' if key == CLASS else 'init_args.'}{key}: it was trained with {stated[key]!r}, this run has "
            f"{value!r}" for key, value in mine.items() if key in stated and stated[key] != value]


def refuse(path: str, reasons: Sequence[str]) -> None:
    """Raise where there is any reason.

    Raises:
        MusiccmError: Lists them.
    """
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise MusiccmError(
            f"{path} does not fit this configuration:{listed}\nResume with the config.yaml that lies beside the "
            "checkpoint's folder, or start another run without --ckpt_path."
        )


def _other_modules(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], without_student: bool = False
) -> list[str]:
    """One reason for every module whose weights differ in name or shape."""
    reasons = []
    for module in sorted({name.partition(".")[0] for name in [*expected, *found]}):
        if without_student and module.startswith("student"):
            continue
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
