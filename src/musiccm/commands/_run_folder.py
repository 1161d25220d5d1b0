"""The folder of a run: `config.yaml`, `checkpoints/`, `results.json` and samples lie in one, whatever logs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from musiccm.errors import MusiccmError
from musiccm.locks import existing_folder, held_run, reserve_version


class RunTrainer(Trainer):
    """Lightning's Trainer, whose `log_dir` is the run's folder.

    Lightning's own is where the first logger writes; each kind has another place for its files, some have none, and
    checkpoints follow it. Here a logger writes where it was told to, and everything else stays together.
    """

    runs: Path | None = None
    """Where the versions of the experiment lie; None leaves all to Lightning."""
    version: str | None = None
    """The run's own, which its owner holds already; None for a new one."""
    held: ExitStack
    """Lets go of a new run's folder in the end."""
    logs_there = False
    """Whether the run logs for TensorBoard, into its folder, as it does where no logger is named."""

    _folder: Path | None = None

    @property
    def log_dir(self) -> str | None:
        """The run's folder. The first process chooses it when this is first read, which all processes must do."""
        if self.runs is None or self.fast_dev_run:
            return super().log_dir
        if self._folder is None:
            version = (self.version or self._new_version(self.runs)) if self.is_global_zero else ""
            self._folder = self.runs / self.strategy.broadcast(version)
            self._settle(self.runs, self._folder)
        return str(self._folder)

    def fit(self, *args: Any, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train what an experiment file describes.

        Args:
            *args: As Lightning's.
            ckpt_path: Checkpoint to go on from: a file, `newest` of this experiment, or `auto` (newest or none).
            **kwargs: As Lightning's.

        Raises:
            MusiccmError: It holds weights alone.
        """
        try:
            super().fit(*args, ckpt_path=ckpt_path, **kwargs)
        except KeyError as error:
            if "save_weights_only" not in str(error):
                raise
            raise MusiccmError(
                f"{ckpt_path}: holds weights alone, as ModelCheckpoint with save_weights_only writes them, and "
                "training cannot go on from them; name a whole checkpoint, or leave --ckpt_path out to begin anew"
            ) from error

    def _new_version(self, runs: Path) -> str:
        """Make and hold a folder where it is first asked for: no mistake in an argument leaves one behind."""
        self.held.enter_context(existing_folder(runs))  # removes what stays empty
        folder = reserve_version(runs)
        self.held.enter_context(held_run(folder))
        return folder.name

    def _settle(self, runs: Path, folder: Path) -> None:
        """Let checkpoints, and the log that nobody placed elsewhere, go into the folder."""
        if self.logs_there:
            self.loggers = [TensorBoardLogger(str(runs.parent), name=runs.name, version=folder.name)]
        for saver in self.checkpoint_callbacks:
            if getattr(saver, "dirpath", folder) is None:
                saver.dirpath = str(folder / "checkpoints")  # type: ignore[attr-defined]
