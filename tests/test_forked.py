"""Processes that tests fork: the libraries are there already, and they end as processes of their own do."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import forked

from musiccm import __version__


def report(rank: int, path: Path) -> None:
    path.write_text("\n".join(sys.modules))


def test_the_libraries_are_imported_before_they_are_needed(tmp_path: Path) -> None:
    """Else it would only be slow, and nobody would notice."""
    forked.spawn(report, (tmp_path / "modules",), 1)
    imported = (tmp_path / "modules").read_text().split("\n")
    assert {"diffusers.models.unets.unet_2d_condition", "jsonargparse", "musiccm.systems.musiccm",
            "torch.utils.tensorboard", "transformers.models.clap.modeling_clap"} <= set(imported)


def test_a_command_prints_and_ends_as_one_of_its_own(tmp_path: Path) -> None:
    asked, wrong, killed = (forked.Command(arguments, tmp_path) for arguments in (
        ["--version"], ["gnerate"], ["prepare", "demo", "--out", "demo", "--workers", "1"]))
    assert __version__ in asked.communicate(60)[0] and asked.returncode == 0
    assert "generate" in wrong.communicate(60)[0] and wrong.returncode == 2
    killed.kill()
    killed.communicate(60)
    assert killed.returncode == -signal.SIGKILL
