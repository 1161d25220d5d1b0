"""How a distillation is saved and taken up again: what a checkpoint holds, and whether it belongs to this run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from musiccm.models.bundle import Bundle
from musiccm.models.lora import is_adapter
from musiccm.systems import speed
from musiccm.systems.checkpoint_fit import (
    CLASS,
    argument_defaults,
    check_fit,
    class_path,
    identity,
    plain,
)
from musiccm.systems.parallel import shard_like, warn, whole
from musiccm.systems.settings import Adversarial, Distillation, Optimization

#: Frozen parts live under this name; checkpoints leave them out, for the bundle has them.
FROZEN = "frozen."
#: Student and averages live under names that begin so.
STUDENT = "student"


class Resuming(pl.LightningModule):
    """Saves what the bundle has not, in the middle of a step too, and refuses checkpoints of another run.

    A part of `DistilledSystem`, which sets the attributes below.
    """

    bundle: Bundle
    distillation: Distillation
    optimization: Optimization
    seed: int
    given_teacher: bool
    batches_seen: int
    #: A subclass' own arguments, as they were given.
    _own_arguments: dict[str, Any]
    #: Gradients of a step that the checkpoint was saved in the middle of.
    _unfinished: dict[str, Tensor]

    def identity(self) -> dict[str, Any]:
        """What the weights in a checkpoint mean and what would go on differently, by key below `model.init_args`.

        The objective's class is in it, and every argument of a subclass' own: settings classes field by field, a module
        by its class and its plain attributes.
        """
        found = identity(self.bundle, self.distillation, Adversarial(weight=0.0), self.optimization, self.seed)
        found |= {"teacher": plain(self.teacher)} if self.given_teacher else {}
        groups = self._own_groups()
        for name, group in groups.items():
            found |= {f"{name}.{key}": value for key, value in plain(group, weights=False).items()}
        return {**found, **{name: value for name, value in self._own_arguments.items() if name not in groups},
                CLASS: class_path(type(self))}

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return self.identity()

    def _own_groups(self) -> dict[str, Any]:
        """A subclass' own arguments that are settings classes; where none was given, what it took in its place."""
        given = self._own_arguments.items()
        found = {name: getattr(self, name, None) if value is None else value for name, value in given}
        return {name: value for name, value in found.items() if is_dataclass(value)}

    def _in_checkpoint(self, name: str) -> bool:
        """Whether a weight is the run's own; the bundle has the others: frozen parts, and what is under adapters."""
        under = self.distillation.lora is not None and name.startswith(STUDENT) and not is_adapter(name)
        return not (name.startswith(FROZEN) or under)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what the bundle has."""
        state = checkpoint["state_dict"]
        # Contiguous, whatever `channels_last` says: safetensors, which an export writes, takes no other.
        checkpoint["state_dict"] = {
            name: value.contiguous() for name, value in state.items() if self._in_checkpoint(name)
        }
        checkpoint["batches_seen"] = self.batches_seen
        if self.batches_seen % self.optimization.accumulate:
            # Saved by the clock or at the end of an epoch, between two batches of one step.
            grads = {name: parameter.grad for name, parameter in self._trained()}
            checkpoint["gradients"] = {name: whole(grad) for name, grad in grads.items() if grad is not None}
        checkpoint["student"] = self._identity
        checkpoint["global_batch"] = self._global_batch()
        checkpoint["training_data"] = self._training_data()
        checkpoint["precision"] = getattr(self._trainer, "precision", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put back what the bundle has, so that loading stays strict, and refuse a checkpoint of another shape."""
        self.batches_seen = checkpoint.get("batches_seen", 0)
        self._unfinished = checkpoint.get("gradients", {})
        mine = {name: value for name, value in self.state_dict().items() if not self._in_checkpoint(name)}
        checkpoint["state_dict"] |= mine
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        path = getattr(self._trainer, "ckpt_path", None) or "the checkpoint"
        check_fit(str(path), self.state_dict(), checkpoint, self._identity, fitting, warn,
                  {name: type(group) for name, group in self._own_groups().items()},
                  argument_defaults(type(self), Resuming))
        if fitting:
            self._warn_of_other_circumstances(str(path), checkpoint)

    def _warn_of_other_circumstances(self, path: str, checkpoint: dict[str, Any]) -> None:
        """Say what may differ and changes what the rest of the run will be."""
        trained, own = checkpoint.get("precision"), getattr(self._trainer, "precision", None)
        if trained != own and None not in (trained, own):
            warn(f"{path} was trained with trainer.precision {trained}, this run has {own}")
        before, now = checkpoint.get("global_batch"), self._global_batch()
        if before != now and None not in (before, now):
            warn(
                f"{path} was trained with {before} clips a step over all processes, this run has {now} "
                "(data.init_args.batch_size x processes): the rest of this epoch repeats or leaves out clips"
            )
        stated, found = checkpoint.get("training_data") or {}, self._training_data() or {}
        others = [f"{key}: {stated[key]!r}, here {value!r}" for key, value in found.items()
                  if key in stated and stated[key] != value]
        if others:
            warn(f"{path} was trained on other data ({'; '.join(others)}): the rest of this epoch repeats or leaves "
                 "out clips")

    def _global_batch(self) -> int | None:
        """Clips of one batch over all processes, as far as the data module tells."""
        data: Any = getattr(self._trainer, "datamodule", None)
        size = getattr(data, "batch_size", None)
        return None if size is None else size * self.trainer.world_size

    def _training_data(self) -> dict[str, Any] | None:
        """What decides which windows a batch has, as far as the data module tells."""
        key = getattr(getattr(self._trainer, "datamodule", None), "training_key", None)
        return None if key is None else key()

    def on_train_start(self) -> None:
        """Take up the optimizers' state, and the gradients of a step that the checkpoint was saved in the middle of."""
        optimizers: Any = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            speed.match_strides(optimizer.optimizer)
        for name, parameter in self._trained():
            if name in self._unfinished:
                gradient = self._unfinished[name].to(parameter.device, parameter.dtype)
                parameter.grad = shard_like(gradient, parameter)
        self._unfinished = {}
