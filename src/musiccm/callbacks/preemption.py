"""A signal ends a run at the next whole step, saved, with an exit code that schedulers can requeue on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch

from musiccm import signals
from musiccm.callbacks import last_checkpoint
from musiccm.systems.later import Later
from musiccm.terminal import say


def without_lightnings_handlers(trainer: pl.Trainer) -> None:
    """Keep a Trainer from hanging in its own: they call collectives from within a handler, and `test` never asks them.

    Args:
        trainer: Before it runs.
    """
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None


def leave_together(trainer: pl.Trainer) -> None:
    """Leave, if any process of the run was sent a signal; every process must call this, and all leave here.

    Args:
        trainer: Its trainer.

    Raises:
        Ended: One was.
    """
    number = signals.received() or 0
    if trainer.world_size > 1:
        flag = torch.tensor(number, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        number = int(flag)
    if number:
        raise signals.Ended(number)


def leaving_together(trainer: pl.Trainer, n: int) -> Callable[[int], None]:
    """The same between the batches of a share of clips, of which some processes may have one more than others.

    Args:
        trainer: Its trainer.
        n: Clips, over all ranks.

    Returns:
        `f(first)`, to be called with the number of each batch's first clip within the share.
    """
    fewest = n // trainer.world_size
    return lambda first: leave_together(trainer) if first < fewest else None


class Preemption(pl.Callback):
    """Saves `last.ckpt` and leaves where any process of the run was sent a signal.

    While steps are made a signal is only noted: which process was told what is agreed on by one small reduction a step,
    read one step late (`Later`), so that all processes leave at the same step. A validation is cut: at once where there
    is one process, else between two batches that all processes have. What is saved then lets the next start begin with
    that validation; so does a signal that ends the step before one.
    """

    def __init__(self) -> None:
        self._agreed = Later()
        self._training = ExitStack()
        self._steps = 0  # made since the start; without any there is nothing new to save
        self._number = 0
        self._owes_validation = False
        self._shared_batches = 0
        self._cut = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._agreed, self._steps, self._number, self._owes_validation = Later(), 0, 0, False
        self._training.enter_context(signals.handled(resumes=True))
        signals.hold()
        self._training.callback(signals.release)
        # Lightning would ask the first process before every batch whether it was sent SIGTERM, and wait for the answer.
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None
        if loop.val_loop.restarted_mid_evaluation:
            loop.val_loop.batch_progress.reset()  # from the first clip
            if trainer.is_global_zero:
                say(f"musiccm: the validation of step {trainer.global_step} had been cut, and is made now")
        elif loop.restarting and trainer.is_global_zero and self._validates_now(trainer):
            say(f"musiccm: the checkpoint was written before the validation of step {trainer.global_step}, which is "
                "not made again")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Leave, if any process was told to.

        Raises:
            Ended: After the checkpoint was written.
        """
        self._steps += 1
        number = signals.received() or 0
        if trainer.world_size > 1:
            answer = self._agreed.take()
            flag = torch.tensor([float(number)], device=pl_module.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self._agreed.put(flag)
            number = 0 if answer is None else int(answer[0])
        if number:
            self._owes_validation = self._validates_now(trainer)
            end = signals.Ended(number)
            self._save(trainer, end)
            raise end

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on the number of batches that all processes have."""
        self._owes_validation = self._running(trainer)
        if self._owes_validation and trainer.world_size > 1:
            batches = min(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches), 2**31)
            fewest = torch.tensor(int(batches), device=trainer.strategy.root_device)
            torch.distributed.all_reduce(fewest, torch.distributed.ReduceOp.MIN)
            self._shared_batches = int(fewest)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave, if the run was told to; a process on its own can also leave in the middle of the batch."""
        if not self._running(trainer):
            return
        if trainer.world_size == 1:
            self._cut.enter_context(signals.interruptible())
        elif batch_idx < self._shared_batches:
            leave_together(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """What callbacks do after the batch is not cut."""
        self._cut.close()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation is made."""
        self._owes_validation = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let who goes on from a run that left before or in a validation begin with that, as Lightning has it."""
        if not (self._owes_validation and self._number):
            return
        loops = checkpoint["loops"]["fit_loop"]
        step, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
        for part in ("total", "current"):
            step[part]["completed"] = step[part]["processed"]
            validation[part] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def _running(self, trainer: pl.Trainer) -> bool:
        return trainer.state.fn == "fit" and not trainer.sanity_checking

    def _validates_now(self, trainer: pl.Trainer) -> bool:
        loop: Any = trainer.fit_loop
        return trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    def _save(self, trainer: pl.Trainer, end: signals.Ended) -> None:
        self._number = end.number
        own = signals.received()
        name = signals.name_of(own) if own else "another process' signal"
        folders = last_checkpoint.folders(trainer)
        if not folders:
            said = "saved nothing, for this run has no checkpoint callback"
        elif self._steps:
            path = folders[0] / last_checkpoint.LAST
            trainer.save_checkpoint(path, weights_only=False)  # that is, with the optimizers
            said = f"saved {path}"
        else:
            said = "nothing to save since the start"
        end.said = True
        if trainer.is_global_zero:
            say(f"musiccm: {name} received: {said} at step {trainer.global_step}; exit code {end.code}, run the same "
                "command again with --ckpt_path auto to go on")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Answer signals as other commands do."""
        self._training.close()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that a run which was cut in its last validation will not make it: Lightning starts no loop at the end."""
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        if progress.started > progress.processed and trainer.is_global_zero:
            say(f"musiccm: the run is at its end, step {trainer.global_step}; its last validation had been cut, and is "
                "left out (musiccm validate makes it)")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what a validation was cut after."""
        self._cut.close()
        try:
            if isinstance(exception, signals.Ended) and self._owes_validation and not self._number:
                self._save(trainer, exception)
        finally:
            self._training.close()
