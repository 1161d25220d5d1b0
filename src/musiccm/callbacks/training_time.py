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

    A run that trains on a teacher's trajectories notes what these took to make, as their folder states it: another run
    spent it, but nobody trains so without.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        # What the trajectories that the run trains on took, `Cost` as a dictionary; None where it reads none.
        self.trajectories: dict[str, Any] | None = None
        # Whether all steps of the run are in the sums: not if it goes on from a checkpoint without them.
        self.complete = True
        self._started: tuple[float, float] | None = None
        self._here: Part | None = None

    @property
    def seconds(self) -> float | None:
        """Of all steps together; None where that is not known."""
        return sum(part.seconds for part in self.parts) if self.parts and self.complete else None

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        made = {} if self.trajectories is None else {"trajectories": self.trajectories}
        return {"parts": [asdict(part) for part in self.parts], "complete": self.complete, **made}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self.parts = [Part(**part) for part in state_dict["parts"]]
        self.complete, self._here = state_dict["complete"], None
        self.trajectories = state_dict.get("trajectories")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notice a run that goes on from a checkpoint of an older version, and what its trajectories took."""
        if trainer.global_step and not self.parts:
            self.complete = False
        data: Any = getattr(trainer, "datamodule", None)
        if getattr(data, "trajectories_dir", None) is not None:
            self.trajectories = asdict(data.trajectories().cost)

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
        there were several kinds), `devices` (the most at once), `steps` (the student's, as the checkpoint counts them),
        `updates` (of student and critic together; the `steps` of older results are these), `batch` (items of one
        update, over all processes), `objective` (the system's class), `start` (the student that it went on from, whose
        own training is not counted) and, of a run on a teacher's trajectories, `trajectories` (what these took, see
        `Cost`). With a warning, what the checkpoint does not hold for all steps, as those of older versions, is None.
        None for a checkpoint that cannot be read.
    """
    found = _clock_of(trainer)
    if found is None:
        return None
    step, clock = found
    if clock.seconds is None:
        log.warning("what the training took is not known for all of its steps: results.json states no time of it")
    parts = clock.parts if clock.complete else []
    # Of a system that is no distillation there is less to say.
    accumulate = getattr(getattr(pl_module, "optimization", None), "accumulate", 1)
    size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    devices = max((part.devices for part in parts), default=None)
    processor = [part.processor_seconds for part in parts if part.processor_seconds is not None]
    return {
        "seconds": clock.seconds,
        "processor_seconds": sum(processor) if parts and len(processor) == len(parts) else None,
        "device": " + ".join(dict.fromkeys(part.device for part in parts)) or None,
        "devices": devices,
        "steps": step,
        "updates": sum(part.batches for part in parts) // accumulate if parts else None,
        "batch": None if size is None or devices is None else size * accumulate * devices,
        "objective": type(pl_module).__name__,
        "start": getattr(getattr(pl_module, "distillation", None), "start", None),
        **({} if clock.trajectories is None else {"trajectories": clock.trajectories}),
    }


def _clock_of(trainer: pl.Trainer) -> tuple[int, TrainingTime] | None:
    """Of the checkpoint that is evaluated, or of the trainer that has just trained."""
    if trainer.ckpt_path is not None and trainer.state.fn != TrainerFn.FITTING:
        return read_clock(Path(trainer.ckpt_path))
    clocks = [callback for callback in trainer.callbacks if isinstance(callback, TrainingTime)]
    return trainer.global_step, clocks[0] if clocks else TrainingTime()


def read_clock(path: Path) -> tuple[int, TrainingTime] | None:
    """How far a checkpoint's training went, and what it took.

    Args:
        path: The checkpoint, which was loaded a moment ago.

    Returns:
        Its step, and the sums, which are not `complete` in one of an older version; None, with a warning, where its
        form is another than a run's.
    """
    # Of a sharded checkpoint, which is a folder, what is not sharded lies in one file.
    file = path / "meta.pt" if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # it was loaded a moment ago, so that only its form can be another
        log.warning("%s: cannot be read for what its training took (%s)", file, reason(error))
        return None
    clock = TrainingTime()
    state = content.get("callbacks", {}).get(clock.state_key)
    if state is None:
        clock.complete = False
    else:
        clock.load_state_dict(state)
    return int(content.get("global_step", 0)), clock
