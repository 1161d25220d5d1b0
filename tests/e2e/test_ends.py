"""Commands that a signal ends in the middle: soon, with what is done kept, and the same command goes on from it."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from musiccm import cli
from musiccm.evaluation.clip_features import read_about
from musiccm.evaluation.evaluator import Evaluator

from .conftest import ACCIDENTS, REPOSITORY, World, accident, checkpoints, differences, evaluation

pytestmark = pytest.mark.e2e

ALLOWED = ["--allow-import", "accidents"]
STEPS, PARTS = 5, ("global_step", "epoch", "batches_seen", "state_dict", "optimizer_states")


@pytest.fixture(scope="module")
def experiment(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    callbacks = [*accident(), checkpoints(3), evaluation(packaged_student=None), {"class_path": "accidents.Validated"}]
    # Epochs of four batches: a validation within one, and one at its end.
    return world.experiment(folder, "ended", callbacks, max_steps=STEPS, val_check_interval=2)


def fit(
    experiment: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str = "none:-1:0", steps: int = STEPS
) -> int:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ACCIDENTS)
    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    monkeypatch.setenv("ACCIDENT", what)
    limit = ["--trainer.max_steps", str(steps)]
    return cli.main(["fit", "--config", str(experiment), "--ckpt_path", "auto", *limit, *ALLOWED])


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> dict[str, Any]:
    folder = experiment.parent / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert fit(experiment, folder, monkeypatch) == 0
    return {"validated": (folder / "validated").read_text(), **torch.load(folder / "final.ckpt", weights_only=True)}


@pytest.mark.parametrize("what", ["SIGTERM:2:0:validation", "SIGUSR1:4:0:evaluation", "SIGINT:2:0",
                                  pytest.param("SIGUSR1:4:0", marks=pytest.mark.slow)])
def test_a_run_told_to_leave_in_or_before_a_validation_makes_it_then_and_goes_on_to_the_same_bits(
    experiment: Path, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], what: str,
) -> None:
    name, step, *_ = what.split(":")
    assert fit(experiment, tmp_path, monkeypatch, what) == (130 if name == "SIGINT" else 75)
    shown = capsys.readouterr()
    assert f"{name} received: saved" in shown.out and f"at step {step};" in shown.out
    assert "Traceback" not in shown.err + shown.out and shown.out.count("received") == 1
    last = tmp_path / "lightning_logs" / "ended" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == int(step)
    assert not (tmp_path / "final.ckpt").exists()
    done = [line.split()[0] for line in (tmp_path / "validated").read_text().splitlines()] if (
        tmp_path / "validated").exists() else []
    assert done == [str(n) for n in range(2, int(step), 2)]

    assert fit(experiment, tmp_path, monkeypatch) == 0
    assert f"the validation of step {step} had been cut, and is made now" in capsys.readouterr().out
    found = torch.load(tmp_path / "final.ckpt", weights_only=True)
    for part in PARTS:
        assert differences(undisturbed[part], found[part], part) == []
    assert (tmp_path / "validated").read_text() == undisturbed["validated"]


def test_the_last_validation_of_a_run_is_not_lost_in_silence(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(experiment, tmp_path, monkeypatch, "SIGTERM:2:0:evaluation", steps=2) == 75
    assert fit(experiment, tmp_path, monkeypatch, steps=2) == 0
    assert "its last validation had been cut, and is left out" in capsys.readouterr().out


def sent(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, call: int) -> None:
    """Let a signal come in the middle of the work: before a function is called for that time, counted from 1."""
    whole, calls = getattr(owner, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return whole(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


def test_a_table_that_is_cut_keeps_the_teachers_rows(
    experiment: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(experiment.parent / "whole")
    monkeypatch.syspath_prepend(ACCIDENTS)
    run = Path("lightning_logs/ended/version_0")
    testing = ["test", "--config", str(experiment), "--ckpt_path", "newest", *ALLOWED]
    with monkeypatch.context() as during:
        sent(during, Evaluator, "_generate", signal.SIGTERM, call=2)
        assert cli.main(testing) == 75
    assert "run the same command again" in capsys.readouterr().err and not (run / "results.json").exists()
    before = {read_about(path)["key"].get("model", "floor"): path.read_bytes()
              for path in Path("lightning_logs/.features").iterdir()}
    assert set(before) == {"floor", "teacher"}, "the floor, and the teacher at its first number of steps"
    assert cli.main(testing) == 0
    rows = json.loads((run / "results.json").read_text())["rows"]
    kept, made = ([row for row in rows if row.get("from_cache", False) is found] for found in (True, False))
    assert [row["model"] for row in kept] == ["floor", "teacher"]
    assert [row["model"] for row in made] == ["teacher", "student", "student"]
    after = [path.read_bytes() for path in Path("lightning_logs/.features").iterdir()]
    assert set(before.values()) < set(after), "what was kept is not made again"


@pytest.mark.parametrize(("command", "place", "call", "number", "code"), [
    ("validate --config {experiment} --allow-import accidents", "musiccm.evaluation.evaluator.Evaluator._generate", 1,
     "SIGTERM", 143),
    ("prepare latents --config {experiment} --cache-dir cache --shard-size 16",
     "musiccm.data.latent_cache.files.CacheWriter.write", 3, "SIGTERM", 75),
    ("prepare index --root {corpus}/train --bundle {bundle} --out index",
     "musiccm.similarity.index_writer._write_rows", 1, "SIGUSR1", 75),
    ("generate piano flute --model {bundle} --steps 1 --out a.wav", "musiccm.audio.io.write_blocks", 2, "SIGUSR1",
     138),
    ("export --checkpoint {last} --config {experiment} --out out", "musiccm.export.save_settings", 1, "SIGINT", 130),
])
def test_other_commands_end_and_can_be_run_again(
    world: World, experiment: Path, undisturbed: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, place: str, call: int, number: str, code: int,
) -> None:
    (here / "lightning_logs").symlink_to(experiment.parent / "whole" / "lightning_logs")
    monkeypatch.syspath_prepend(ACCIDENTS)
    monkeypatch.setenv("ACCIDENT", "none:-1:0")
    arguments = command.format(experiment=experiment, corpus=world.corpus, bundle=world.bundle,
                               last="lightning_logs/ended/version_0/checkpoints/last.ckpt").split()
    owner, _, name = place.rpartition(".")
    with monkeypatch.context() as during:
        sent(during, pkgutil.resolve_name(owner), name, signal.Signals[number], call)
        assert cli.main(arguments) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and ("run the same command again" in shown) == (code == 75)
    files = {path.name for path in here.rglob("*") if path.is_file()}
    assert not [name for name in files if name.startswith(".") and not name.startswith(".scan")], "left behind"
    if arguments[0] == "generate":
        assert files == {"a_1.wav"}, "what is done"
        arguments.append("--force")
    assert cli.main(arguments) == 0
    if arguments[:2] == ["prepare", "latents"]:
        # at least the two before; those that were on their way to the disk are written too
        assert re.search(r"\b[2-5] of 6 files are there already", (told := capsys.readouterr().out)), told


def test_the_demos_processes_end_with_it(here: Path) -> None:
    """Ctrl-C, which the terminal sends to all processes; 2,000 tracks would take minutes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "musiccm", "prepare", "demo", "--out", "demo", "--workers", "2"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(here.rglob("*.flac")):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        begun = time.monotonic()
        printed, _ = process.communicate(timeout=60)  # returns when the workers have closed their end too
        took_s = time.monotonic() - begun
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert took_s < 30 and printed.endswith("musiccm: interrupted\n")
