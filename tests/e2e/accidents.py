"""Callbacks that make a run meet with an accident, as the environment says, and tell what each process came to."""

import os
import signal

import torch
from pytorch_lightning import Callback


class Accident(Callback):
    """`ACCIDENT=<what>:<step>:<rank>[:<where>]`: what befalls that process: a signal, by its name, or `NAN`.

    Where: before the step of that number is made, or, in the `validation` behind it, before a batch of the held-out
    clips or (`evaluation`) before clips are generated; listed before the callback that does that. Or before the file of
    the checkpoint behind it is put in its place (`write`, in a process of its own).
    """

    def on_fit_start(self, trainer, pl_module):
        if not os.environ.get("ACCIDENT", "").endswith(":write"):
            return
        replace = os.replace

        def replace_or_die(source, target):
            if str(target).endswith("last.ckpt") and (what := self._due(trainer, trainer.global_step, "write")):
                os.kill(os.getpid(), signal.Signals[what])
            replace(source, target)

        os.replace = replace_or_die

    def _due(self, trainer, step, where):
        what, number, rank, *place = os.environ.get("ACCIDENT", "none:-1:0").split(":")
        due = (step, trainer.global_rank, [where]) == (int(number), int(rank), place or ["step"])
        return what if due and not trainer.sanity_checking else None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        what = self._due(trainer, trainer.global_step + 1, "step")
        if what == "NAN":
            batch.latents_BCTF.fill_(float("nan"))
        elif what:
            os.kill(os.getpid(), signal.Signals[what])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if what := self._due(trainer, trainer.global_step, "validation"):
            os.kill(os.getpid(), signal.Signals[what])

    def on_validation_epoch_end(self, trainer, pl_module):
        if what := self._due(trainer, trainer.global_step, "evaluation"):
            os.kill(os.getpid(), signal.Signals[what])


class Validated(Callback):
    """Adds a line to `validated` for every validation that came to its end: the step, and the distance."""

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking and trainer.is_global_zero:
            with open("validated", "a") as file:
                file.write(f"{trainer.global_step} {float(trainer.callback_metrics['val/fd_tagger_1'])!r}\n")


class SaveAtEnd(Callback):
    """Writes `final.ckpt` into the working folder when a run has come to its end."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint("final.ckpt")


class EachProcess(Callback):
    """Writes what every process trained on and came to into `rank<number>.pt`, also where a signal ends the run."""

    def on_train_start(self, trainer, pl_module):
        self.clips = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.clips.append(list(batch.ids))

    def on_train_end(self, trainer, pl_module):
        trained = {name: p.detach() for name, p in pl_module.named_parameters() if not name.startswith("frozen.")}
        found = {"clips": self.clips, "step": trainer.global_step, "weights": trained,
                 "environment": type(trainer.strategy.cluster_environment).__name__,
                 "timeout_s": trainer.strategy._timeout.total_seconds()}
        torch.save(found, f"rank{trainer.global_rank}.pt")

    def on_exception(self, trainer, pl_module, exception):
        self.on_train_end(trainer, pl_module)
