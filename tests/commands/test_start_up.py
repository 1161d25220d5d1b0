"""What is loaded before an option is refused, and what is loaded to make music."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from musiccm.loading import loading

#: Prints the exit code, and of the modules that are named first those that were loaded.
COUNT = """
import sys
from musiccm.cli import main
watched, arguments = sys.argv[1].split(","), sys.argv[2:]
code = main(arguments)
print("loaded", code, *(name for name in watched if sys.modules.get(name) is not None), file=sys.stderr)
"""
HEAVY = ("torch", "numpy", "diffusers", "transformers", "scipy", "soundfile", "pytorch_lightning")


def loaded(folder: Path, watched: tuple[str, ...], *arguments: str) -> tuple[list[str], str]:
    """Exit code and modules of a process of its own, and all that it said."""
    done = subprocess.run([sys.executable, "-c", COUNT, ",".join(watched), *arguments], cwd=folder,
                          capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("loaded "), said
    return last.split()[1:], said


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--help"], "0", "usage: musiccm COMMAND"),
    (["generate", "--help"], "0", "how windows are fused: uniform, triangular, swap"),
    (["fit", "--help"], "0", "--ckpt_path"),
    (["generate", "x", "--steps", "3000"], "2", "--steps: expected a whole number from 1 to 50, the size of the grid"),
    (["generate", "x", "--steps", "501", "--model", "musiccm-tiny"], "2",
     "--steps: expected a whole number from 1 to 500, found 501"),
    (["generate", "x", "--seconds", "4000"], "2", "--seconds: expected seconds above 0 and up to 3600, found 4000.0"),
    (["generate", "x", "--fusion", "odd"], "2", "--fusion: expected one of uniform, triangular, swap, found 'odd'"),
    (["generate", " "], "2", "prompt 1 of 1: expected a description"),
    (["generate", "x", "--at", "2", ""], "2", "prompt at 2 s: expected a description"),
    (["generate", "x", "--vary", "gone.wav"], "2", "gone.wav: missing: expected an audio file here"),
    (["generate", "--prompts", "gone.csv", "--out", "x"], "2", "--prompts gone.csv: missing: expected a file"),
    (["generate", "x", "--inpaint", __file__, "--from", "3", "--to", "3"], "2", "--from, --to: expected a range"),
])
def test_what_is_wrong_is_refused_before_libraries_are_loaded(
    tmp_path: Path, arguments: list[str], code: str, said: str
) -> None:
    found, shown = loaded(tmp_path, HEAVY, *arguments)
    assert found == [code] and said in shown, shown
    assert list(tmp_path.iterdir()) == []


#: Of training, of measuring and of serving: `generate` uses none of them.
OF_OTHERS = ("pytorch_lightning", "lightning_fabric", "torchmetrics", "timm", "librosa", "sklearn", "matplotlib",
             "fastapi", "uvicorn", "omegaconf", "jsonargparse", "tensorboard", "musiccm.systems", "musiccm.evaluation",
             "musiccm.callbacks", "musiccm.serving", "musiccm.losses", "musiccm.embedders")
#: What libraries of networks bring, and a model of MusicLDM's kind is sampled without.
OF_NETWORKS = ("diffusers", "transformers", "accelerate", "peft", "torchvision", "torchaudio", "torch._dynamo", "sympy",
               "triton")


def test_music_is_made_without_what_trains_measures_and_serves(tmp_path: Path) -> None:
    watched = ("torch", *OF_OTHERS, *OF_NETWORKS)
    found, shown = loaded(tmp_path, watched, "generate", "organ", "--steps", "1", "--out", "x.wav")
    assert found == ["0", "torch"], shown
    assert (tmp_path / "x.wav").is_file()


def test_settings_of_a_training_are_read_without_what_builds_its_networks(tmp_path: Path) -> None:
    watched = ("torch", "pytorch_lightning", "diffusers", "timm", "accelerate", "peft", "torchaudio")
    found, shown = loaded(tmp_path, watched, "fit", "--config", "demo", "--print_config")
    assert found == ["0", "torch", "pytorch_lightning"], shown


def test_the_collector_rests_while_things_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled(), "whoever had it off keeps it off"
    finally:
        gc.enable()
    monkeypatch.setattr("musiccm.loading._stays", True)
    try:
        with pytest.raises(KeyError), loading():
            raise KeyError
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
