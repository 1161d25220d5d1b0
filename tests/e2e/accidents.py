"""Callbacks that make a run meet with an accident, as the environment says, and tell what each process came to."""

import os
import signal

import torch
from pytorch_lightning import Callback


class Accident(Callback):
    """`ACCIDENT=<what>:<step>:<rank>`: a signal's name, or `NAN`, before the step of that number, on that process."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        what, step, rank = os.environ.get("ACCIDENT", "none:-1:0").split(":")
        if trainer.global_step + 1 != int(step) or trainer.global_rank != int(rank):
            return
        if what == "NAN":
            batch.latents_BCTF.fill_(float("nan"))
        else:
            os.kill(os.getpid(), signal.Signals[what])


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
