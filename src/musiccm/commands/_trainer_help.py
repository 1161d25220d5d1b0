"""The page that `musiccm fit --help` and its like print: the options that people use; `--help-all` lists every one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

ALL_OPTIONS = "--help-all"

_EXPERIMENT = {
    "--config EXPERIMENT": "an experiment: a YAML file, or the name of one that musiccm brings (demo, objectives/lcm, "
                           "...); given again, the later one is laid over the earlier (strategies/ddp)",
    "--experiment NAME": "the run's folder is lightning_logs/NAME/version_N (default: the file's name)",
    "--allow-import MODULE": "import classes of your own that the file names (repeatable)",
}
_DATA = {
    "--data.init_args.root FOLDER": "the corpus; --data.init_args.layout manifest and its like say how it lies there",
    "--data.init_args.cache_dir FOLDER": "its latents, which `musiccm prepare latents` writes",
    "--data.init_args.batch_size N": "clips of a step and process",
    "--data.init_args.num_workers N": "processes that read",
}
_DEVICE = {
    "--trainer.accelerator NAME": "cpu, gpu, ... (default: a GPU if there is one)",
    "--trainer.devices N": "how many of them (docs/launch.md)",
    "--trainer.precision P": "32-true or bf16-mixed",
    "--trainer.default_root_dir FOLDER": "where lightning_logs/ lies (default: here)",
}
_SECTIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "fit": {
        "the experiment": _EXPERIMENT | {
            "--ckpt_path FILE": "go on from a checkpoint; auto: from the newest of this experiment, if there is one",
            "--seed_everything N": "seed of everything that is drawn",
        },
        "how long, and what is kept": {
            "--trainer.max_steps N": "steps of the student",
            "--trainer.max_time DD:HH:MM:SS": "ends the run earlier",
            "--trainer.val_check_interval N": "batches between validations",
            "--trainer.limit_val_batches 0": "no validation",
            "--trainer.log_every_n_steps N": "steps between points in TensorBoard",
        },
        "what is trained, on what": {
            "--model.init_args.bundle NAME": "the teacher: a packaged bundle, a folder or a hub id",
            "--model.init_args.optimization.lr R": "learning rate",
            "--model.init_args.distillation.start FILE": "student to start from: a checkpoint or an exported student",
            **_DATA,
        },
        "where": _DEVICE,
    },
    "validate": {
        "the experiment": _EXPERIMENT | {"--ckpt_path FILE": "the checkpoint, or newest of this experiment"},
        "on what": _DATA,
        "where": _DEVICE,
    },
    "test": {
        "the experiment": _EXPERIMENT | {
            "--ckpt_path FILE": "the checkpoint, or newest of this experiment",
            "--n N": "test clips to score (default: `limit` of the Evaluation callback)",
        },
        "on what": _DATA,
        "where": _DEVICE,
    },
}
_EXAMPLES = {
    "fit": ("musiccm fit --config demo --trainer.max_steps 100", "musiccm fit --config my.yaml --ckpt_path auto"),
    "validate": ("musiccm validate --config demo --ckpt_path newest",),
    "test": ("musiccm test --config demo --ckpt_path newest --n 128",),
}


def named_options(command: str) -> list[str]:
    """The options that the page of a command names, without their values."""
    return [option.split()[0] for section in _SECTIONS[command].values() for option in section]


def page(command: str, summary: str) -> str:
    """What `musiccm COMMAND --help` prints.

    Args:
        command: `fit`, `validate` or `test`.
        summary: What it does, in a line.

    Returns:
        Lines of at most 100 characters.
    """
    lines = [f"usage: musiccm {command} --config EXPERIMENT [OPTIONS]", "", summary]
    for heading, options in _SECTIONS[command].items():
        lines += ["", f"{heading}:"]
        for option, text in options.items():
            first, *rest = textwrap.wrap(text, 54)
            lines += [f"  {option:<42}  {first}", *(f"{'':46}{line}" for line in rest)]
    lines += ["", "Every key of the file is an option, as --section.key VALUE.",
              f"musiccm {command} {ALL_OPTIONS} lists those of the Trainer, and this the arguments of a class:",
              f"  musiccm {command} --model.help musiccm.systems.musiccm.MusicCM", "", "examples:"]
    return "\n".join([*lines, *(f"  {example}" for example in _EXAMPLES[command])])
