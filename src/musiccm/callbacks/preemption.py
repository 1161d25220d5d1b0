"""SIGTERM and SIGUSR1 end a run at the next whole step, saved, with an exit code that schedulers can requeue on."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from musiccm.callbacks import last_checkpoint
from musiccm.callbacks.later import Later
from musiccm.terminal import say

log = logging.getLogger(__name__)

#: EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
EXIT_REQUEUE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """The run was told to leave and has saved; its exit code is `EXIT_REQUEUE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_REQUEUE)


class Preemption(pl.Callback):
    """Saves `last.ckpt` and exits with `EXIT_REQUEUE` where any process of the run was sent SIGTERM or SIGUSR1.

    Takes the place of Lightning's handlers, which would call collectives from within the handler, where other processes
    are in the middle of a step, and under SLURM save there as well. Which process was told what is agreed on by one
    small reduction a step, read one step late (`Later`); so all processes leave at the same step. A signal that comes
    during a validation waits for the next training step.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._agreed = Later()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hang in the handlers, after Lightning has hung in its own."""
        self._received, self._agreed = None, Later()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        # Lightning would ask the first process before every batch whether it was sent SIGTERM, and wait for the answer.
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing but this: a handler may run in the middle of anything.
        self._received = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Leave, if any process was told to.

        Raises:
            Preempted: After the checkpoint was written.
        """
        told = self._received is not None
        if trainer.world_size > 1:
            answer = self._agreed.take()
            flag = torch.tensor([float(told)], device=pl_module.device)
            torch.distributed.all_reduce(flag)
            self._agreed.put(flag)
            told = answer is not None and answer[0] > 0
        if told:
            self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        name = signal.Signals(self._received).name if self._received else "another process' signal"
        folders = last_checkpoint.folders(trainer)
        if folders:
            path = folders[0] / last_checkpoint.LAST
            trainer.save_checkpoint(path)
            said = f"saved {path}"
        else:
            said = "saved nothing, for this run has no checkpoint callback"
        if trainer.is_global_zero:
            say(f"musiccm: {name} received: {said} at step {trainer.global_step}; exit code {EXIT_REQUEUE}, run the "
                "same command again with --ckpt_path auto to go on")
        raise Preempted

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the handlers back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the handlers back."""
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
