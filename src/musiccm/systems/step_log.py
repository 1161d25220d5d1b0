"""What a training step logs, without a wait for the device.

Lightning sends every number that is logged to the device, and asks for the value of whatever stands in the progress bar
at the end of every step: a GPU would be without work each time. Here figures of the device are logged as they are, to
be read when a logger writes; numbers of the host stay there; and the bar's loss is that of the step before.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor

from musiccm.systems.later import Later


class StepLog:
    """Logs the steps of one system under `train/`."""

    def __init__(self) -> None:
        self._loss = Later()

    def write(self, system: pl.LightningModule, figures: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Log one step, from within a hook that Lightning lets log.

        Args:
            system: The system.
            figures: Scalars on the device; `loss` stands in the progress bar too.
            numbers: Of the host; `samples_per_s` stands in the progress bar too.
        """
        system.log_dict({f"train/{name}": value for name, value in figures.items()})
        for name, number in numbers.items():
            system.log(f"train/{name}", torch.tensor(float(number)), prog_bar=name == "samples_per_s")
        if "loss" in figures:
            if known := self._loss.take():
                system.trainer.progress_bar_metrics["train/loss"] = known[0]
            self._loss.put(figures["loss"][None].clone())
