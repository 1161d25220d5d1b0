"""Where a run's own files go."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl


def run_folder(trainer: pl.Trainer) -> tuple[Path, str]:
    """Where a run's results go, and the name of its experiment.

    Args:
        trainer: The trainer; every rank must call this.

    Returns:
        `lightning_logs/<experiment>/version_N` and `<experiment>` under `musiccm fit | validate | test`; under another
        trainer Lightning's `log_dir`, else the root folder, and its name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    name = folder.parent.name if folder.name.startswith("version_") else folder.resolve().name
    return folder, name
