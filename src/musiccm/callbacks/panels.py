"""Sounds and mels of a student while it learns, in TensorBoard or in the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from musiccm.audio.io import write_audio
from musiccm.audio.mel import LogMel
from musiccm.callbacks.run_folder import run_folder
from musiccm.callbacks.sampler_option import sampler_option
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import (
    Comparison,
    candidates,
    clip_seed,
    initial_noise,
)
from musiccm.evaluation.distilled import as_distilled
from musiccm.evaluation.plots import mel_image, save_mels

log = logging.getLogger(__name__)

PROMPTS = (
    "a calm piano melody over soft strings",
    "a lively marimba tune with a rock beat",
    "slow organ chords, no drums",
)


class Panels(pl.Callback):
    """Audio and mel panels for fixed prompts and fixed noise: the teacher once, the student every so many steps.

    They go to the run's TensorBoard loggers; where there is none, into `panels/` of the run's folder.

    Rank zero only. The system must be `Distilled`.

    Args:
        prompts: Fixed prompts.
        steps: Steps of the student.
        teacher_steps: Steps of the teacher.
        sampler: The student's sampler: its name, or its name and fields; `lcm` by default.
        every_n_steps: Optimizer steps of the student between panels.
        seed: Seed of the noise, with the prompts.
        gamma: Of version 0.1, as `sampler: {name: lcm, gamma: ...}`.

    Raises:
        MusiccmError: A number, list or sampler that cannot be.
    """

    def __init__(
        self,
        prompts: Sequence[str] = PROMPTS,
        steps: Sequence[int] = (1, 4),
        teacher_steps: int = 50,
        sampler: str | dict[str, str | float] | None = None,
        every_n_steps: int = 200,
        seed: int = 0,
        gamma: float | None = None,
    ) -> None:
        if not prompts or every_n_steps < 1:
            raise MusiccmError(
                f"panels: expected at least one prompt and every_n_steps >= 1, found {len(prompts)} and {every_n_steps}"
            )
        self.prompts, self.steps, self.teacher_steps = list(prompts), list(steps), teacher_steps
        self.sampler = sampler_option("panels", sampler, gamma)
        self.every_n_steps, self.seed = every_n_steps, seed
        self._last_step: int | None = None
        self._folder: Path | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the run's folder, which all processes must do; say so if the panels go there."""
        if stage != "fit" or trainer.fast_dev_run or self._boards(trainer):
            return
        self._folder = run_folder(trainer)[0] / "panels"
        if trainer.is_global_zero:
            log.warning("panels: no TensorBoard logger; audio and mels go to %s", self._folder)

    @staticmethod
    def _boards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
        return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the teacher, and the student as it starts."""
        if trainer.global_step == 0:
            self._log(trainer, pl_module, {"teacher": [self.teacher_steps]})
        self._student(trainer, pl_module)

    @rank_zero_only
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Log the student when its step count comes round."""
        if trainer.global_step % self.every_n_steps == 0:
            self._student(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the student as it ends."""
        self._student(trainer, pl_module)

    def _student(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Under accumulation several batches end at one step.
        if self._last_step == trainer.global_step:
            return
        self._last_step = trainer.global_step
        self._log(trainer, pl_module, {"student": self.steps})

    @torch.no_grad()
    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: dict[str, list[int]]) -> None:
        loggers = self._boards(trainer)
        if not loggers and self._folder is None:
            return
        system = as_distilled(pl_module)
        seeds = [clip_seed(self.seed, prompt) for prompt in self.prompts]
        log_mel, rate = LogMel(system.bundle.mel), system.bundle.sample_rate_hz
        for candidate in candidates(Comparison(system, self.sampler, system.guidance_scale), steps):
            noise = initial_noise(seeds, candidate.latent_shape, system.device)
            told = candidate.condition(self.prompts, seeds)
            made = candidate.decode(candidate.sample(told, noise, seeds)).float().cpu()
            for logger in loggers:
                self._write(logger, trainer.global_step, candidate.label, made, log_mel, rate)
            if not loggers and self._folder is not None:
                self._save(self._folder / f"step_{trainer.global_step}", candidate.label, made, log_mel, rate)

    def _write(
        self, logger: TensorBoardLogger, step: int, label: str, made_BS: Tensor, log_mel: LogMel, rate: int
    ) -> None:
        from torch.utils.tensorboard.summary import audio

        board = logger.experiment
        for i, (prompt, waveform) in enumerate(zip(self.prompts, made_BS, strict=True)):
            summary = audio(f"{label}/audio_{i}", waveform.clamp(-1, 1), rate)
            # what the card is headed with; its tag stays, so that a run that goes on has one series
            summary.value[0].metadata.display_name = prompt
            summary.value[0].metadata.summary_description = f"{label}, by the seed {self.seed} and the prompt: {prompt}"
            board.file_writer.add_summary(summary, step)
        picture = mel_image(self._titled(log_mel(made_BS)), log_mel.config, label)
        board.add_image(f"{label}/mels", picture, step, dataformats="HWC")

    def _save(self, folder: Path, label: str, made_BS: Tensor, log_mel: LogMel, rate: int) -> None:
        stem = label.replace("@", "_")
        for i, waveform in enumerate(made_BS):
            write_audio(folder / f"{stem}_{i}.wav", waveform, rate)
        save_mels(folder / f"{stem}.png", self._titled(log_mel(made_BS)), log_mel.config, label)

    def _titled(self, mels: Tensor) -> list[tuple[str, Tensor]]:
        return list(zip(self.prompts, mels, strict=True))
