"""One small world for all end-to-end tests: a demo corpus, a bundle with random weights, its latents, an experiment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from tiny_bundle import build_random_bundle

from musiccm import cli

REPOSITORY = Path(__file__).parents[2]
CLIP_SAMPLES = 128 * 160  # eight latent frames
TRAIN_TRACKS, TEST_TRACKS = 20, 4


def evaluation(**changes: object) -> dict:
    arguments = {"guidance_scale": 3.0, "steps": [1, 2], "teacher_steps": [2, 1], "limit": TEST_TRACKS, "batch_size": 4,
                 "n_panels": 2, "panel_labels": ["teacher@2", "student@2"], "val_steps": [1], "val_limit": 2}
    return {"class_path": "musiccm.callbacks.evaluation.Evaluation", "init_args": arguments | changes}


def checkpoints(every: int) -> dict:
    arguments = {"every_n_train_steps": every, "save_top_k": 0, "save_last": True}
    return {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": arguments}


def accident() -> list[dict]:
    """The callbacks of accidents.py; their module must be on the path (`modules=ACCIDENTS` of `start`)."""
    return [{"class_path": "accidents.Accident"}, {"class_path": "accidents.SaveAtEnd"}]


ACCIDENTS = Path(__file__).parent


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places at which two nested structures differ by as much as one bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [place for key in a for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i, (x, y) in enumerate(zip(a, b, strict=True)) for place in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


class World:
    """The folder that all runs share; each run has a folder of its own to work in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.corpus, self.bundle, self.cache = root / "corpus", root / "bundle", root / "latents"

    def experiment(self, folder: Path, name: str, callbacks: list[dict], **trainer: object) -> Path:
        """Write an experiment whose base is the shipped one of `make smoke`."""
        content = {
            "base": str(REPOSITORY / "experiments" / "smoke.yaml"),
            "experiment": name,
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
                        "callbacks": callbacks, **trainer},
            "model": {"init_args": {
                "bundle": str(self.bundle),
                "adversarial": {"crop_frames": 4, "head_width": 8},
                "optimization": {"lr": 1e-3},
            }},
            "data": {"init_args": {
                "root": str(self.corpus), "cache_dir": str(self.cache), "bundle": str(self.bundle),
                "clip_samples": CLIP_SAMPLES, "windows_per_track": 2, "batch_size": 8, "val_clips": 2,
            }},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path


def starter() -> Iterator[Callable[..., forked.Command]]:
    """Starts `musiccm` as a process of its own; none outlives the test."""
    running: list[forked.Command] = []

    def begin(
        arguments: list[str], folder: Path, modules: Path | None = None, **variables: str
    ) -> forked.Command:
        allowed = ["--allow-import", "accidents"] if modules else []
        running.append(forked.Command([*arguments, *allowed], folder, modules, variables))
        return running[-1]

    yield begin
    for process in running:
        process.terminate()
        try:
            process.communicate(timeout=40)
        except TimeoutError:
            process.kill()
            process.communicate()


start = pytest.fixture(starter, name="start")
start_once = pytest.fixture(starter, name="start_once", scope="module")


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `musiccm` in several processes, as users do; none outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(
        processes: int, arguments: list[str], folder: Path, modules: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        paths = [str(REPOSITORY / "src"), str(modules or ""), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
                                    "GLOO_SOCKET_IFNAME": "lo"}
        environment.pop("MUSICCM_DEBUG", None)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "musiccm"]
        running.append(subprocess.Popen(
            [sys.executable, *launch, *arguments], cwd=folder, env=environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def side_by_side(start: Callable[..., Any]) -> Callable[..., tuple[list[int | None], list[str]]]:
    """Runs `musiccm` in several processes that torchrun might have started; their exit codes, and what each printed."""

    def run(
        processes: int, arguments: list[str], folder: Path, modules: Path | None = None, **variables: str
    ) -> tuple[list[int | None], list[str]]:
        port = forked.free_port()
        ranks = [start(arguments, folder, modules, **variables, **forked.rank_variables(rank, processes, port))
                 for rank in range(processes)]
        printed = [rank.communicate(timeout=300)[0] for rank in ranks]
        return [rank.returncode for rank in ranks], printed

    return run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    build_random_bundle(made.bundle, frames=8)
    tracks = ["--tracks", str(TRAIN_TRACKS), "--test-tracks", str(TEST_TRACKS), "--validation-tracks", "0"]
    tracks += ["--seed", "1", "--workers", "2"]
    assert cli.main(["prepare", "demo", "--out", str(made.corpus), *tracks]) == 0
    path = made.experiment(made.root, "prepared", [])
    assert cli.main(["prepare", "latents", "--config", str(path)]) == 0
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    return tmp_path
