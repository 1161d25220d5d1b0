"""A callback that makes a run meet with an accident, as the environment says; copied beside an experiment."""

import os
import signal

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
