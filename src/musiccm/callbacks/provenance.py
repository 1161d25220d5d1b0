"""What was run: `config.yaml` in the run's folder, headed by the git hash and the package versions."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.trainer.states import TrainerFn

from musiccm.callbacks.run_folder import run_folder
from musiccm.files import write_text

PACKAGES = (
    "musiccm",
    "torch",
    "pytorch-lightning",
    "diffusers",
    "transformers",
    "timm",
    "torchmetrics",
    "jsonargparse",
)


def git_hash(folder: Path | None = None) -> str | None:
    """The commit of the source that is running, with `-dirty` where tracked files differ from it.

    Args:
        folder: Any folder of the source tree; by default this package's.

    Returns:
        None without git, outside a repository, and where a repository merely surrounds an installed copy.
    """
    folder = folder or Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        done.check_returncode()
        return done.stdout.strip()

    try:
        if not git("ls-files", "."):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, str]:
    """Git hash, Python and package versions, in the order in which they are written."""
    found = {"git": git_hash() or "unknown", "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class SaveConfigWithProvenance(SaveConfigCallback):
    """Writes the resolved configuration where the run's other files go.

    The provenance is a comment at the top, so the file can be given to `--config` again as it is. A fit writes
    `config.yaml`, or `config_resumed.yaml` beside the first one; other stages write `config_<stage>.yaml`. A fit that
    neither logs nor saves leaves nothing behind.
    """

    _folder: Path

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the run's folder on every process, then write on the first one."""
        self._folder, _ = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; Lightning calls this on rank 0 alone, once."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.fast_dev_run or (fitting and not trainer.loggers and not trainer.checkpoint_callbacks):
            return
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if fitting else f"config_{trainer.state.fn.value}.yaml"
        if fitting and (folder / name).exists():
            name = "config_resumed.yaml"
        header = "".join(f"# {key} {value}\n" for key, value in provenance().items())
        body = self.parser.dump(self.config, skip_none=False)
        write_text(folder / name, header + body)
