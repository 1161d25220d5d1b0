"""`musiccm fit | validate | test`: LightningCLI with run folders and checkpoints found by name."""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, set_parsing_settings
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from musiccm import signals
from musiccm.callbacks.divergence import Divergence
from musiccm.callbacks.evaluation import Evaluation
from musiccm.callbacks.last_checkpoint import LastStep, newest
from musiccm.callbacks.last_validation import LastValidation
from musiccm.callbacks.preemption import Preemption, without_lightnings_handlers
from musiccm.callbacks.progress_lines import ProgressLines
from musiccm.callbacks.provenance import SaveConfigWithProvenance
from musiccm.callbacks.training_time import TrainingTime
from musiccm.commands._checkpoints import with_our_files
from musiccm.commands._imports import check_classes, only_known_imports, take_allowed
from musiccm.commands._nested_null import with_nested_nulls
from musiccm.commands._run_folder import RunTrainer
from musiccm.commands._run_words import closing_words, metric_lines, opening_words, unfinished
from musiccm.commands._trainer_options import check_trainer_options, class_name, listed, named_class
from musiccm.config import check_run_name, no_resolvers
from musiccm.errors import MusiccmError
from musiccm.files import sweep_below
from musiccm.loading import loading
from musiccm.locks import held_run
from musiccm.systems.distillation import DistilledSystem
from musiccm.terminal import interactive, say

LOG_FOLDER = "lightning_logs"


class TrainerCLI(LightningCLI):
    """Model and data come from the YAML by `class_path`; a run goes to `lightning_logs/<experiment>/version_N`.

    `--ckpt_path newest` takes the newest checkpoint of the experiment, `--ckpt_path auto` does too where there is
    one. Working on a checkpoint of the experiment continues in the folder that it lies in, so that the results of
    `musiccm test` stand beside the weights they describe. Another `trainer.logger` moves its own log and nothing else.
    One process (or group of ranks) at a time works in a run's folder.

    Args:
        args: The subcommand and its arguments.
        held: Lets go of the run's folder in the end.
        allowed: Modules that a configuration may name beside the known ones.
    """

    def __init__(self, args: list[str], held: ExitStack, allowed: list[str]) -> None:
        self.held, self.allowed = held, allowed
        # Interpolation must be relative to the subcommand, and be carried out after command-line overrides.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        parser_kwargs = {"parser_mode": "omegaconf+", "exit_on_error": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=RunTrainer,
            trainer_defaults={"enable_model_summary": False},  # `opening_words` has what of it is of use
            save_config_callback=SaveConfigWithProvenance,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=parser_kwargs | {name: dict(parser_kwargs) for name in self.subcommands()},
            args=with_nested_nulls(args),
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
        parser.add_argument("--n", type=int | None, default=None, help=(
            "Clips that `test` scores: short for `limit` of the Evaluation callback."))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs) -> LightningArgumentParser:
        """Let the help of `--ckpt_path` say what is taken here, where Lightning's names a registry; show no box."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "verbose":
                action.default = False  # a box of what the table or the lines of this command say
            if action.dest == "ckpt_path":
                action.help = "Checkpoint file; `newest` of this experiment, or `auto`: the newest, or none."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args) -> None:
        """Parse, without Lightning's warning that `sys.argv` exists too."""
        with no_resolvers(), loading():
            self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build the run, which imports what its networks are made of."""
        with loading():
            super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters override YAML and command line; here those win."""

    @property
    def runs_folder(self) -> Path:
        """Where the versions of this experiment lie."""
        options = self.config[self.subcommand]
        return Path(options.trainer.default_root_dir or ".") / LOG_FOLDER / options.experiment

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work, find the checkpoint and take its run's folder, before the model is built."""
        options = self.config[self.subcommand]
        check_run_name(options.experiment)
        check_classes(options, self.allowed)
        if options.weights_only is False:
            raise MusiccmError("weights_only: false would run the code that a checkpoint may hold; leave it out")
        options.weights_only = True
        _limit_evaluation(self.subcommand, options.n, options.trainer.callbacks)
        check_trainer_options(self.subcommand, options.trainer, named_class(class_name(options.model)))
        options.ckpt_path = find_checkpoint(options.ckpt_path, self.runs_folder)
        _check_experiment(self.subcommand, options)
        if is_first_process():
            sweep_below(self.runs_folder)
            version = _version_of(options.ckpt_path, self.runs_folder)
            if version is not None:
                self.held.enter_context(held_run(self.runs_folder / version))

    def _begin(self) -> None:
        if self.trainer.is_global_zero:
            say(opening_words(self.subcommand, self.trainer, self.model, self.config[self.subcommand].ckpt_path))

    before_fit = before_validate = before_test = _begin

    def after_fit(self) -> None:
        """Say what the run's files take, what can go, and how the student becomes a model."""
        trainer = self.trainer
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if (said := unfinished(trainer)) is not None:
            say(said)
        checkpoint = newest(trainer)
        if isinstance(self.model, DistilledSystem) and checkpoint is not None:
            say("", closing_words(Path(trainer.log_dir or "."), checkpoint))

    def after_validate(self) -> None:
        """Say what the validation came to."""
        if self.trainer.is_global_zero and (lines := metric_lines(self.trainer.callback_metrics)):
            say(*lines)

    def after_test(self) -> None:
        """The same, where no table has said it."""
        if not any(isinstance(callback, Evaluation) for callback in self.trainer.callbacks):
            self.after_validate()

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Build the Trainer, with the run's folder, our checkpoint files and, in logs, our progress lines."""
        options, given = self.config[self.subcommand], self.config_init[self.subcommand].trainer
        callbacks = listed(given.callbacks)
        kwargs["plugins"] = with_our_files(listed(given.plugins), given.strategy, self.allowed)
        bars = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if not (interactive() or bars or given.barebones or given.enable_progress_bar is False):
            kwargs["callbacks"] = [*callbacks, ProgressLines()]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.runs, trainer.version = self.runs_folder, _version_of(options.ckpt_path, self.runs_folder)
        trainer.held = self.held
        trainer.logs_there = options.trainer.logger in (None, True)
        if not any(isinstance(callback, Divergence) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, Divergence())  # before anything saves or shows what has diverged
        if not any(isinstance(callback, TrainingTime) for callback in trainer.callbacks):
            trainer.callbacks.insert(1, TrainingTime())  # before whatever works at the end of a step, which is no step
        # Under SLURM they would requeue the job from within a signal handler, at any moment of a fit or a test, and
        # leave a checkpoint of Lightning's own behind that the next fit takes in place of the one it was given.
        without_lightnings_handlers(trainer)
        # Behind the checkpoint callbacks, which Lightning sorts to the end.
        trainer.callbacks += [LastValidation(), LastStep(), Preemption()]
        return trainer


def is_first_process() -> bool:
    """Whether this is rank 0 as far as the launcher's variables tell, before Lightning has counted the processes."""
    return rank_zero_only.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _limit_evaluation(subcommand: str, n: int | None, callbacks: Any) -> None:
    """Hand `--n` to the Evaluation callback.

    Raises:
        MusiccmError: A number that cannot be, a command that scores no test clips, or no such callback.
    """
    if n is None:
        return
    if n < 2 or subcommand != "test":
        raise MusiccmError(f"--n: expected at least 2 clips of `musiccm test`, found {n} for `musiccm {subcommand}`")
    found = [entry for entry in listed(callbacks) if class_name(entry).endswith("callbacks.evaluation.Evaluation")]
    if not found:
        raise MusiccmError("--n: trainer.callbacks has no musiccm.callbacks.evaluation.Evaluation, which scores clips")
    for entry in found:
        entry.init_args.limit = n


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
        found = [found for path in runs.glob("version_*/checkpoints/*.ckpt") if (found := _age(path)) is not None]
        if found:
            return str(max(found)[-1])
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


def _age(path: Path) -> tuple[int, bool, Path] | None:
    """What decides which checkpoint is the newest; None for what is none, or has just been removed by its run."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    whole = stat.S_ISREG(status.st_mode) and re.fullmatch(r"version_\d+", path.parent.parent.name)
    return (status.st_mtime_ns, path.name == "last.ckpt", path) if whole else None


def _version_of(ckpt_path: str | None, runs: Path) -> str | None:
    if ckpt_path is None:
        return None
    for folder in Path(ckpt_path).absolute().parents:
        if folder.parent == runs.absolute() and re.fullmatch(r"version_\d+", folder.name):
            return folder.name
    return None


def _check_experiment(subcommand: str, options: Namespace) -> None:
    """Let the objective refuse an experiment that lacks what it needs.

    Raises:
        MusiccmError: It does.
    """
    system = named_class(class_name(options.model))
    if system is not None and issubclass(system, DistilledSystem):
        system.check_experiment({**options.as_dict(), "subcommand": subcommand})


def main(argv: list[str]) -> int:
    """Run one Trainer method.

    Args:
        argv: `fit`, `validate` or `test`, then its arguments, with `base:` already resolved.

    Returns:
        The exit code.
    """
    allowed, argv = take_allowed(argv)
    try:
        with ExitStack() as held, only_known_imports(allowed):
            TrainerCLI(argv, held, allowed)
    except RuntimeError as error:
        signals.check()  # the others were told to leave too
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
