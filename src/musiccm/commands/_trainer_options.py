"""Options of Lightning's Trainer that cannot work here: refused before anything is read, with what to set instead."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.callbacks import Checkpoint

from musiccm.errors import MusiccmError
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.stages.audio_vae import AudioVaeStage
from musiccm.systems.stages.base import Stage

ALL, FIT = ("fit", "validate", "test"), ("fit",)

#: Strategies that start their processes by copying this one's memory, or shard by themselves, and what to name instead.
STRATEGIES = {
    "spawn|fork|notebook": "it copies the running program, whose networks cannot be copied; ddp starts processes anew",
    "deepspeed|fsdp|modelparallel|model_parallel": "its checkpoints are not those of this project; "
                                                  "musiccm.systems.sharded.Sharded shards "
                                                  "(experiments/strategies/fsdp.yaml)",
    "^dp$|dataparallelstrategy|horovod|bagua|colossal|hivemind|xla|tpu|hpu|ipu": "expected auto, ddp (or "
                                                  "experiments/strategies/ddp.yaml) or single_device",
}


@dataclass(frozen=True)
class Refusal:
    """One value, or several, that an option cannot have.

    Args:
        option: Its name below `trainer`.
        found: From the trainer's options to whether they are refused.
        reason: Why, and what to set instead.
        commands: For which commands.
        systems: For which systems; None for all.
    """

    option: str
    found: Callable[[Mapping[str, Any]], Any]
    reason: str
    commands: tuple[str, ...] = FIT
    systems: tuple[type, ...] | None = None


def class_name(value: Any) -> str:
    """The class of a block `class_path`/`init_args`, or of an object; a text as it is."""
    if isinstance(value, str):
        return value
    return str(_entry(value, "class_path") or type(value).__name__)


def listed(value: Any) -> list[Any]:
    """What an option holds that takes nothing, one object or several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _entry(block: Any, key: str) -> Any:
    """An entry of a block, be it the parser's or a dictionary; None where there is none."""
    return block.get(key) if hasattr(block, "get") else None


def _precision(options: Mapping[str, Any]) -> str:
    return str(options.get("precision"))


def _saves(options: Mapping[str, Any]) -> bool:
    """Whether a callback of the options writes checkpoints."""
    for callback in listed(options.get("callbacks")):
        found = named_class(class_name(callback)) if not isinstance(callback, Checkpoint) else Checkpoint
        if found is not None and issubclass(found, Checkpoint):
            return True
    return False


def _endless(options: Mapping[str, Any]) -> bool:
    return options.get("max_steps", -1) == -1 and options.get("max_epochs") in (None, -1)


def _unreadable_interval(options: Mapping[str, Any]) -> bool:
    interval = options.get("val_check_interval")
    return isinstance(interval, str) and re.fullmatch(r"\d+:\d+:\d+:\d+", interval) is None


def _zero(option: str, default: int = 1) -> Callable[[Mapping[str, Any]], bool]:
    """Finds a 0, which is what False and 0.0 are too, in an option."""
    return lambda options: options.get(option, default) == 0


REFUSED = (
    Refusal("accumulate_grad_batches", lambda o: o.get("accumulate_grad_batches", 1) != 1,
            "a distillation steps its optimizers itself; set model.init_args.optimization.accumulate", FIT,
            (DistilledSystem,)),
    Refusal("gradient_clip_val", lambda o: o.get("gradient_clip_val"),
            "a distillation clips by itself; set model.init_args.optimization.clip_norm", FIT, (DistilledSystem,)),
    Refusal("gradient_clip_algorithm", lambda o: o.get("gradient_clip_algorithm") not in (None, "norm"),
            "a distillation clips the norm, by model.init_args.optimization.clip_norm, and nothing else; leave it out",
            FIT, (DistilledSystem,)),
    *(Refusal(option, found, reason, FIT, (AudioVaeStage,)) for option, found, reason in (
        ("accumulate_grad_batches", lambda o: o.get("accumulate_grad_batches", 1) != 1,
         "this stage steps its optimizers itself, once a batch; raise data.init_args.batch_size"),
        ("gradient_clip_val", lambda o: o.get("gradient_clip_val"),
         "this stage clips by itself; set it to null, and model.init_args.clip_norm"),
    )),
    Refusal("val_check_interval", lambda o: isinstance(o.get("val_check_interval"), float)
            and o.get("check_val_every_n_epoch") is None,
            "a share of an epoch needs trainer.check_val_every_n_epoch: 1, and it is null; set that, or a whole number "
            "of batches such as 350", ALL),
    Refusal("val_check_interval", _unreadable_interval,
            "expected a whole number of batches, or a time as DD:HH:MM:SS (00:00:10:00)", ALL),
    Refusal("val_check_interval", _zero("val_check_interval"),
            "expected at least 1; for no validation set trainer.limit_val_batches: 0", ALL),
    Refusal("check_val_every_n_epoch", _zero("check_val_every_n_epoch"),
            "expected at least 1, or null; for no validation set trainer.limit_val_batches: 0", ALL),
    Refusal("num_nodes", _zero("num_nodes"), "expected at least 1", ALL),
    Refusal("enable_checkpointing", lambda o: o.get("enable_checkpointing") is False and _saves(o),
            "trainer.callbacks has one that writes checkpoints; take it out of the list too, or leave this option out",
            ALL),
    Refusal("precision", lambda o: re.fullmatch(r"(bf16|16|64)-true|64|transformer-engine.*", _precision(o)),
            "codec, features and averages compute in float32; set 32-true, or bf16-mixed", ALL),
    Refusal("precision", lambda o: re.fullmatch("16(-mixed)?", _precision(o)),
            "under manual optimization Lightning clips float16 gradients while they are still scaled; set 32-true or "
            "bf16-mixed", FIT, (DistilledSystem, AudioVaeStage)),
    Refusal("barebones", lambda o: o.get("barebones"),
            "it allows neither logs nor checkpoints, without which a run leaves nothing; leave it out", ALL),
    Refusal("fast_dev_run", lambda o: o.get("fast_dev_run"),
            "a stage writes its part into the bundle when it ends, after a few batches too; set trainer.max_steps and "
            "another model.init_args.bundle to try it", FIT, (Stage,)),
    Refusal("max_steps", _endless,
            "expected the number of steps, found none (and no max_epochs): learning rate and curriculum are shares of "
            "the run. Set it, whether or not max_time ends the run earlier", FIT, (DistilledSystem, Stage)),
    *(Refusal(option, _zero(option), "nothing would be trained; expected at least 1", FIT, (DistilledSystem, Stage))
      for option in ("limit_train_batches", "max_steps", "max_epochs")),
    Refusal("limit_test_batches", lambda o: o.get("limit_test_batches") == 0,
            "nothing would be measured; for fewer clips set `limit` of the callback musiccm.callbacks.evaluation",
            ("test",), (DistilledSystem,)),
    Refusal("fast_dev_run", lambda o: o.get("fast_dev_run"),
            "the table is made of all clips all the same, and lies in no run's folder; for fewer clips set `limit` of "
            "the callback musiccm.callbacks.evaluation", ("test",), (DistilledSystem,)),
)


def check_trainer_options(command: str, options: Mapping[str, Any], system: type | None) -> None:
    """Refuse what would fail later, or be ignored.

    Args:
        command: `fit`, `validate` or `test`.
        options: What stands below `trainer`.
        system: The model's class; None where it is not known.

    Raises:
        MusiccmError: Names the option, its value, why it cannot work, and what to set instead.
    """
    for refusal in REFUSED:
        concerned = refusal.systems is None or (system is not None and issubclass(system, refusal.systems))
        if command in refusal.commands and concerned and refusal.found(options):
            value = options.get(refusal.option)
            raise MusiccmError(f"trainer.{refusal.option}: {_shown(value)} cannot be used here: {refusal.reason}")
    strategy = options.get("strategy")
    start = _entry(_entry(strategy, "init_args"), "start_method") or "popen"
    name = class_name(strategy).rsplit(".", 1)[-1].lower()
    for pattern, reason in STRATEGIES.items():
        if re.search(pattern, name) or re.search(pattern, start):
            raise MusiccmError(f"trainer.strategy: {class_name(strategy)} cannot be used here: {reason}")


def named_class(path: Any) -> type | None:
    """The class of a `class_path`; None where there is none, which the parser has its own words for.

    Args:
        path: `package.module.Class`.

    Returns:
        The class.
    """
    module, _, name = str(path or "").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return str(value)
