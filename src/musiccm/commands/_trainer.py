"""`musiccm fit | validate | test`: LightningCLI with run folders and checkpoints found by name."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import torch
from jsonargparse import set_parsing_settings
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment

from musiccm.callbacks.divergence import Divergence
from musiccm.callbacks.last_step import LastStep
from musiccm.callbacks.preemption import Preemption
from musiccm.callbacks.provenance import SaveConfigWithProvenance
from musiccm.commands._checkpoints import with_our_files
from musiccm.commands._imports import check_classes, only_known_imports, take_allowed
from musiccm.config import check_run_name, no_resolvers
from musiccm.errors import MusiccmError

LOG_FOLDER = "lightning_logs"


class TrainerCLI(LightningCLI):
    """Model and data come from the YAML by `class_path`; a run goes to `lightning_logs/<experiment>/version_N`.

    `--ckpt_path newest` takes the newest checkpoint of the experiment, `--ckpt_path auto` does too where there is
    one. Working on a checkpoint of the experiment continues in the folder that it lies in, so that the results of
    `musiccm test` stand beside the weights they describe.
    """

    def __init__(self, args: list[str], allowed: list[str]) -> None:
        self.allowed = allowed
        # Interpolation must be relative to the subcommand, and be carried out after command-line overrides.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        parser_kwargs = {"parser_mode": "omegaconf+", "exit_on_error": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigWithProvenance,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=parser_kwargs | {name: dict(parser_kwargs) for name in self.subcommands()},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, but for `predict`, which nothing here has a loop for."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what an experiment file says about itself."""
        parser.add_argument(
            "--experiment", type=str, default="default", help="Name of the run's folder (default: the file's name)."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args) -> None:
        """Parse, without Lightning's warning that `sys.argv` exists too."""
        with no_resolvers():
            self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters override YAML and command line; here those win."""

    @property
    def runs_folder(self) -> Path:
        """Where the versions of this experiment lie."""
        options = self.config[self.subcommand]
        return Path(options.trainer.default_root_dir or ".") / LOG_FOLDER / options.experiment

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint before the model is built, so that a wrong path fails at once."""
        options = self.config[self.subcommand]
        check_run_name(options.experiment)
        check_classes(options, self.allowed)
        if options.weights_only is False:
            raise MusiccmError("weights_only: false would run the code that a checkpoint may hold; leave it out")
        options.weights_only = True
        options.ckpt_path = find_checkpoint(options.ckpt_path, self.runs_folder)

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Build the Trainer, with a TensorBoard logger and our checkpoint files unless the YAML names others."""
        options = self.config[self.subcommand]
        if options.trainer.logger in (None, True):
            version = _version_of(options.ckpt_path, self.runs_folder)
            folder = self.runs_folder
            kwargs["logger"] = TensorBoardLogger(str(folder.parent), name=folder.name, version=version)
        given = self._get(self.config_init, "trainer")
        kwargs["plugins"] = with_our_files(given.plugins, given.strategy, self.allowed)
        trainer = super().instantiate_trainer(**kwargs)
        if not any(isinstance(callback, Divergence) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, Divergence())  # before anything saves or shows what has diverged
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            # It would requeue the job from within a signal handler, at any moment of a fit or a test, and leave a
            # checkpoint of its own behind that the next fit takes in place of the one it was given.
            environment.auto_requeue = False
        # Behind the checkpoint callbacks, which Lightning sorts to the end.
        trainer.callbacks += [LastStep(), Preemption()]
        return trainer


def find_checkpoint(wanted: str | None, runs: Path) -> str | None:
    """Resolve `newest` and `auto`, and refuse a path that is not there.

    Args:
        wanted: A path, `newest`, `auto` (newest or none), or None.
        runs: The folder that holds `version_*/checkpoints/*.ckpt`.

    Returns:
        A path, or None for none.

    Raises:
        MusiccmError: If `newest` finds nothing or the path does not exist.
    """
    if wanted is None:
        return None
    if wanted in ("newest", "auto"):
        found = sorted(
            runs.glob("version_*/checkpoints/*.ckpt"), key=lambda p: (p.stat().st_mtime_ns, p.name == "last.ckpt")
        )
        if found:
            return str(found[-1])
        if wanted == "auto":
            return None
        raise MusiccmError(f"--ckpt_path newest: no checkpoint under {runs}; train first, or name a checkpoint file")
    if Path(wanted).is_dir():
        raise MusiccmError(f"--ckpt_path {wanted} is a folder; expected one file. A checkpoint in several files has "
                           "a pickle that says what lies where, and is not read")
    if not Path(wanted).exists():
        raise MusiccmError(
            f"--ckpt_path {wanted} does not exist; expected a checkpoint file, or `newest` for this experiment's latest"
        )
    return wanted


def _version_of(ckpt_path: str | None, runs: Path) -> str | None:
    if ckpt_path is None:
        return None
    for folder in Path(ckpt_path).absolute().parents:
        if folder.parent == runs.absolute() and re.fullmatch(r"version_\d+", folder.name):
            return folder.name
    return None


def main(argv: list[str]) -> int:
    """Run one Trainer method.

    Args:
        argv: `fit`, `validate` or `test`, then its arguments, with `base:` already resolved.

    Returns:
        The exit code.
    """
    # Lightning's advertisements and hints about loader workers are not for the people who run experiments.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*pre-optimization state.*")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    allowed, argv = take_allowed(argv)
    try:
        with only_known_imports(allowed):
            TrainerCLI(argv, allowed)
    except RuntimeError as error:
        if not _lost_another_process(error):
            raise
        reason = str(error).splitlines()[0]
        raise MusiccmError(
            f"another process of this run has ended or does not answer any more ({reason}). Its own message, or the "
            "launcher's, says why. Run the same command again with --ckpt_path auto to go on from the last checkpoint."
        ) from error
    return 0


def _lost_another_process(error: RuntimeError) -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    # gloo raises bare RuntimeErrors, which begin with the place in its source.
    return distributed and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))
