"""Stops a run whose losses are not finite or explode, before such weights reach a checkpoint."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from musiccm.callbacks import last_checkpoint
from musiccm.errors import MusiccmError
from musiccm.systems.later import Later

#: Metrics whose size says nothing of a run's health.
UNBOUNDED = ("grad_norm",)


@dataclass
class _Step:
    """What is remembered of a step until its metrics are known."""

    number: int
    names: list[str]
    ids: list[str]
    loss: Tensor | None
    metrics: Later = field(default_factory=Later)


class Divergence(pl.Callback):
    """Watches the metrics that a system's `training_step` returns under `watched`: means over all processes.

    They are read one step late, so that the device never waits; a checkpoint reads them first, and checks the weights
    too. All processes see the same means and so stop at the same step. What a critic returns is watched by its own
    names; a system with several optimizers says by `rate_key(metric)` which learning rate to lower.

    Args:
        factor: A loss explodes where it is this many times its own median in size.
        patience: Steps in a row that it must do so. One outlier is harmless: gradients are clipped.
        window: Steps that the median is taken over; a loss is checked once it has been seen for half as many.
    """

    def __init__(self, factor: float = 100.0, patience: int = 10, window: int = 200) -> None:
        if factor <= 1 or patience < 1 or window < 2:
            raise MusiccmError(f"divergence: expected factor > 1, patience >= 1 and window >= 2, found {factor}, "
                               f"{patience} and {window}")
        self.factor, self.patience, self.window = factor, patience, window
        self._last: _Step | None = None
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))
        self._above: dict[str, int] = defaultdict(int)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the step before this one, and queue this one's metrics.

        Raises:
            MusiccmError: The run has diverged.
        """
        self._check(trainer)
        watched = outputs.get("watched") if isinstance(outputs, Mapping) else None
        if watched:
            step = _Step(trainer.global_step, list(watched), list(getattr(batch, "ids", [])), outputs.get("loss"))
            step.metrics.put(torch.stack([value.float() for value in watched.values()]))
            self._last = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the last step.

        Raises:
            MusiccmError: The run has diverged.
        """
        self._check(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let nothing be saved that is not finite.

        Raises:
            MusiccmError: The step before the checkpoint has diverged, or a weight or a moment is not finite.
        """
        self._check(trainer)
        spoilt = first_not_finite(_trained_tensors(trainer, pl_module))
        if trainer.world_size > 1:
            # Under a sharded strategy each process sees its own part.
            everyone: list[str | None] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, spoilt)
            spoilt = next((name for name in everyone if name), None)
        if spoilt:
            raise MusiccmError(
                f"training has diverged: {spoilt} is not finite at step {trainer.global_step}, so nothing was saved; "
                f"{last_checkpoint.describe(trainer)}. {_advice()}"
            )

    def _check(self, trainer: pl.Trainer) -> None:
        step, self._last = self._last, None
        if step is None:
            return
        metrics = dict(zip(step.names, step.metrics.take() or [], strict=True))
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._stop(trainer, step, name, f"{name} is {value}")
        for name, value in metrics.items():
            reason = self._explodes(name, value)
            if reason:
                self._stop(trainer, step, name, reason)

    def _explodes(self, name: str, value: float) -> str | None:
        if name.startswith(UNBOUNDED):
            return None
        history = self._history[name]
        # Losses here are of the order of 1; without that floor, one that hovers around 0 would seem to explode.
        usual = max(1.0, statistics.median(history)) if len(history) >= self.window // 2 else math.inf
        if abs(value) <= self.factor * usual:
            self._above[name] = 0
            history.append(abs(value))
            return None
        self._above[name] += 1
        if self._above[name] < self.patience:
            return None
        return f"{name} is {value:.4g}, for {self.patience} steps above {self.factor:g} times its median of {usual:.4g}"

    def _stop(self, trainer: pl.Trainer, step: _Step, name: str, reason: str) -> None:
        own = (trainer.global_rank, step.ids, step.loss is not None and not math.isfinite(float(step.loss)))
        everyone = [own]
        if trainer.world_size > 1:
            everyone = [own] * trainer.world_size
            torch.distributed.all_gather_object(everyone, own)
        guilty = [entry for entry in everyone if entry[2]] or everyone
        clips = [f"{', '.join(ids)}{f' (process {rank})' if len(everyone) > 1 else ''}" for rank, ids, _ in guilty]
        raise MusiccmError(
            f"training has diverged: {reason} at step {step.number}, on the clips {'; '.join(clips) or 'unknown'}; "
            f"{last_checkpoint.describe(trainer)}. {_advice(_rate_key(trainer, name))}"
        )


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds an infinity or a NaN, found with one wait for the device."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return None
    # The largest magnitude of a tensor is not finite where any of its values is not.
    largest = torch.stack([norm.float() for norm in torch._foreach_norm([t for _, t in named], float("inf"))])
    finite = torch.isfinite(largest).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def _trained_tensors(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[tuple[str, Tensor]]:
    frozen = getattr(pl_module, "frozen", None)
    left_out = {id(tensor) for tensor in frozen.parameters()} if isinstance(frozen, torch.nn.Module) else set()
    for name, parameter in pl_module.named_parameters():
        if id(parameter) not in left_out:
            yield name, _local(parameter.detach())
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.device == parameter.device:
                    yield f"the optimizer's {key} of {names.get(id(parameter), 'a weight')}", _local(value)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _rate_key(trainer: pl.Trainer, name: str) -> str:
    """Which learning rate a metric hangs on, where the system has several and says so."""
    tell = getattr(trainer.lightning_module, "rate_key", None)
    return f" ({tell(name)})" if tell is not None else ""


def _advice(key: str = "") -> str:
    return f"Lower the learning rate{key}, or look at these clips, and run the same command again with --ckpt_path auto"
