"""What a run's training cost: seconds of its steps alone, kept in its checkpoints."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from musiccm.device import device_name
from musiccm.errors import reason

log = logging.getLogger(__name__)


@dataclass
class Part:
    """The steps that were taken on one kind of device.

    Args:
        device: Its name.
        devices: How many of them.
        threads: Of the first process, on a CPU.
        seconds: Wall-clock time.
        processor_seconds: Of all threads of the first process; None on an accelerator, whose work it does not show.
        batches: Of one process.
    """

    device: str
    devices: int
    threads: int
    seconds: float = 0.0
    processor_seconds: float | None = None
    batches: int = 0


class TrainingTime(pl.Callback):
    """Adds up what the training steps take, from the start of a batch to the end of its step.

    Left out are validation, checkpoints, panels, start-up, and the time between two steps, in which data is fetched.
    The sums are part of every checkpoint, so that a run that is resumed goes on with those of the checkpoint: steps
    that were lost and made again count once. It has to stand before callbacks that work at the end of a batch.

    A GPU computes while the host goes on: what is left of a step's work when its batch ends is waited for by the next
    step, and counted there; before a checkpoint, a validation and the end it is waited for here.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        # Whether all steps of the run are in the sums: not if it goes on from a checkpoint without them.
        self.complete = True
        self._started: tuple[float, float] | None = None
        self._here: Part | None = None

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"parts": [asdict(part) for part in self.parts], "complete": self.complete}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self.parts = [Part(**part) for part in state_dict["parts"]]
        self.complete, self._here = state_dict["complete"], None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notice a run that goes on from a checkpoint of an older version."""
        if trainer.global_step and not self.parts:
            self.complete = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Stop it, and count the batch."""
        part = self._add(trainer, pl_module)
        part.batches += 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count what the device has yet to compute: Lightning took the sums before it."""
        self._wait(trainer, pl_module)
        checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what the device has yet to compute."""
        self._wait(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what the device has yet to compute."""
        self._wait(trainer, pl_module)

    def _add(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Part:
        part = self._part(trainer, pl_module)
        if self._started is not None:
            wall, processor = self._started
            part.seconds += time.perf_counter() - wall
            if part.processor_seconds is not None:
                part.processor_seconds += time.process_time() - processor
        self._started = None
        return part

    def _wait(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda" and self._here is not None:
            self._started = time.perf_counter(), time.process_time()
            torch.cuda.synchronize(pl_module.device)
            self._add(trainer, pl_module)

    def _part(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Part:
        if self._here is None:
            on_cpu = pl_module.device.type == "cpu"
            here = Part(device_name(pl_module.device), trainer.world_size, torch.get_num_threads(), 0.0,
                        0.0 if on_cpu else None)
            same = [part for part in self.parts
                    if (part.device, part.devices, part.threads) == (here.device, here.devices, here.threads)]
            if not same:
                self.parts.append(here)
            self._here = same[0] if same else here
        return self._here


def training_record(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any] | None:
    """What the weights that are evaluated cost to train, for `results.json`.

    Args:
        trainer: Whose checkpoint is evaluated, or who has just trained.
        pl_module: The system.

    Returns:
        `seconds`, `processor_seconds` (None where not all of it was on a CPU), `device` (names, joined by ` + ` where
        there were several kinds), `devices` (the most at once), `steps`, `batch` (items of one step, over all
        processes), `objective` (the system's class) and `start` (the student that it went on from, whose own training
        is not counted); None, with a warning, where the checkpoint does not hold the times of all steps, as those of
        older versions.
    """
    parts = _parts_of(trainer)
    if not parts:
        log.warning("what the training took is not known for all of its steps: results.json has no `training`")
        return None
    # Of a system that is no distillation there is less to say.
    accumulate = getattr(getattr(pl_module, "optimization", None), "accumulate", 1)
    size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    processor = [part.processor_seconds for part in parts if part.processor_seconds is not None]
    return {
        "seconds": sum(part.seconds for part in parts),
        "processor_seconds": sum(processor) if len(processor) == len(parts) else None,
        "device": " + ".join(dict.fromkeys(part.device for part in parts)),
        "devices": max((part.devices for part in parts), default=0),
        "steps": sum(part.batches for part in parts) // accumulate,
        "batch": None if size is None else size * accumulate * max((part.devices for part in parts), default=1),
        "objective": type(pl_module).__name__,
        "start": getattr(getattr(pl_module, "distillation", None), "start", None),
    }


def _parts_of(trainer: pl.Trainer) -> list[Part]:
    """The sums of the checkpoint that is evaluated, or of the trainer that has just trained; nothing if incomplete."""
    if trainer.ckpt_path is None or trainer.state.fn == TrainerFn.FITTING:
        clocks = [callback for callback in trainer.callbacks if isinstance(callback, TrainingTime)]
        return clocks[0].parts if clocks and clocks[0].complete else []
    path = Path(trainer.ckpt_path)
    # Of a sharded checkpoint, which is a folder, what is not sharded lies in one file.
    file = path / "meta.pt" if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # it was loaded a moment ago, so that only its form can be another
        log.warning("%s: cannot be read for what its training took (%s)", file, reason(error))
        return []
    clock = TrainingTime()
    state = content.get("callbacks", {}).get(clock.state_key)
    if state is not None:
        clock.load_state_dict(state)
    return clock.parts if clock.complete else []
