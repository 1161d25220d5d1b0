"""A researcher's first hour: music of her own by a manifest, the commands of the documents, a model that makes music.

The commands are those of docs/data.md ("Your own music") and of the README, as they stand there; `small.yaml`, laid
over the experiment, makes networks, steps and evaluation small enough for a test.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from documented import Command, commands, own_experiment
from small_corpus import sound
from tiny_bundle import build_random_bundle

from musiccm import cli

from .conftest import CLIP_SAMPLES, checkpoints, evaluation

pytestmark = pytest.mark.e2e

CLIPS = {"train": 12, "test": 10}
PANELS = {"class_path": "musiccm.callbacks.panels.Panels",
          "init_args": {"prompts": ["a cello alone"], "steps": [1], "teacher_steps": 1, "every_n_steps": 4}}
#: Lines that this package writes, from the first character to the last.
OURS = [
    r"",
    r"(fit|test): MusicCM on \S+(, trains [\w ,]+ parameters)?(, from \S+)?",
    r"(fit|reference|floor|real|teacher@\d|student@\d|spread)[\w@ ]*: \d+/\d+ \w+ \(\d+%\).*",
    r"lightning_logs/my/version_0: .* of which last\.ckpt .*",
    r"  musiccm export --checkpoint \S+ --out my-student",
    r"Then, and after `musiccm test`, last\.ckpt can go, unless the run is to go on",
    r"evaluation: .*", r"Frechet distance: .*", r"\w+ left out: .*", r"no comparison by .*", r"written to \S+",
    r"(fast|original) decoder, n = \d+.*", r"model +steps .*", r"[- ]+",
    r"(floor|teacher|student) +(-|\d+) .*", r"chance .*", r"real test clips: .*", r"left out, for the tagger .*",
    r"(\w+ )?(-?[\d.]+|train)(, \w+ (-?[\d.]+|train))*(, \w+)?,?",  # numbers of the real clips, over several lines
    r"no ratio of .*", r"sim_aa: .*", r"the number of clips .*",
    r"the teacher's CLAP does not know this corpus: .*",
]


def page(name: str, start: str) -> Command:
    """A command of a document, by what it begins with."""
    (found,) = {command.text: command for command in commands()
                if command.page == name and command.text.startswith(start) and not command.mentioned}.values()
    return found


def small(folder: Path) -> None:
    content = {
        "trainer": {"accelerator": "cpu", "max_steps": 4, "val_check_interval": 100, "log_every_n_steps": 1,
                    "callbacks": [checkpoints(2), PANELS, evaluation(limit=10, teacher_steps=[2], steps=[1], draws=8)]},
        "model": {"init_args": {"bundle": str(build_random_bundle(folder / "teacher")),
                                "adversarial": {"crop_frames": 4, "head_width": 8, "start_step": 1},
                                "optimization": {"warmup_steps": 1}, "distillation": {"warm_start_steps": 1}}},
        "data": {"init_args": {"clip_samples": CLIP_SAMPLES, "batch_size": 4, "eval_batch_size": 4, "val_clips": 2,
                               "windows_per_track": 2}},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Her folder: audio, two tables of captions, and the experiment file that docs/data.md shows."""
    desk = tmp_path_factory.mktemp("researcher")
    (desk / "my/corpus").mkdir(parents=True)
    for split, count in CLIPS.items():
        rows = ["path,caption"]
        for n in range(count):
            path = f"{split}-{n}.wav"
            soundfile.write(desk / "my/corpus" / path, sound(n + 100 * (split == "test"), 2.0), 16000)
            rows.append(f'{path},"a cello, take {n}"')
        (desk / f"my/corpus/{split}.csv").write_text("\n".join(rows) + "\n")
    (desk / "my.yaml").write_text(own_experiment())
    small(desk)
    return desk


@pytest.fixture(scope="module")
def printed(desk: Path, start_once: Callable[..., Any]) -> dict[str, str]:
    """What `fit` and `test` print to somebody who keeps a log, each in a process of its own."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        for start in ("musiccm prepare corpus", "musiccm prepare latents"):
            command = page("docs/data.md", f"{start} --config my.yaml").words[1:]
            assert cli.main([*command, "--config", "small.yaml"]) == 0
    for name in ("fit", "test"):
        command = page("docs/data.md", f"musiccm {name} --config my.yaml").words[1:]
        process = start_once([*command, "--config", "small.yaml"], desk)
        found[name], _ = process.communicate(timeout=500)
        assert process.returncode == 0, found[name]
    return found


def test_the_manifest_is_read_and_encoded(printed: dict[str, str], desk: Path) -> None:
    index = json.loads((desk / "my/latents/train/index.json").read_text())
    assert index and (desk / "my/latents/test/index.json").is_file()
    saved = yaml.safe_load((desk / "lightning_logs/my/version_0/config.yaml").read_text())
    assert saved["data"]["init_args"]["layout"] == "manifest" and saved["data"]["init_args"]["root"] == "my/corpus"
    assert torch.load(desk / "lightning_logs/my/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_log_holds_what_the_project_wrote_and_nothing_else(printed: dict[str, str], command: str) -> None:
    lines = [line.rstrip() for line in printed[command].splitlines()]
    assert [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in OURS)] == []
    assert len(lines) > 4 and "± -" not in printed[command] and "\r" not in printed[command]


def test_she_is_told_that_this_teacher_does_not_know_her_music(printed: dict[str, str], desk: Path) -> None:
    """One caption differs from another by a number, which random networks do not read."""
    (said,) = [line for line in printed["test"].splitlines() if "does not know this corpus" in line]
    results = json.loads((desk / "lightning_logs/my/version_0/results.json").read_text())
    own = results["own_captions"]
    assert own["n"] == 10 and f"{own['share']:.2f} [{own['low']:.2f}, {own['high']:.2f}]" in said
    assert "train_a_teacher.md" in said


def test_no_ratio_of_the_excess_of_ten_clips_in_more_dimensions(printed: dict[str, str], desk: Path) -> None:
    rows = json.loads((desk / "lightning_logs/my/version_0/results.json").read_text())["rows"]
    ratios = {key: row[key] for row in rows for key in row if re.fullmatch(r"excess_fd_\w+_ratio", key)}
    assert ratios and not any(ratios.values()) and "no ratio of" in printed["test"]


def test_runs_are_compared_exported_and_make_music(
    printed: dict[str, str], desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    runs = [str(path) for path in sorted(Path("lightning_logs/my").glob("version_*"))]
    compare = page("README.md", "musiccm compare")
    assert compare.words[2:] == ["lightning_logs/demo/version_*"]
    assert cli.main(["compare", *runs]) == 0
    assert "| my | student | 1 | 1 |" in capsys.readouterr().out
    (command,) = [line for line in printed["fit"].splitlines() if line.startswith("  musiccm export")]
    words = shlex.split(command)
    as_documented = [word.replace("lightning_logs/demo", "lightning_logs/my")
                     for word in page("README.md", "musiccm export").words]
    assert words == as_documented, "the README's command, filled in by the run"
    assert cli.main(words[1:]) == 0
    assert cli.main(["generate", "a cello alone", "--model", "my-student", "--steps", "1", "--out", "cello.wav"]) == 0
    samples, rate = soundfile.read("cello.wav")
    assert rate == 16000 and len(samples) == CLIP_SAMPLES and np.abs(samples).max() > 1e-3
