"""Two processes started as `srun` starts them: the variables that SLURM sets, no torchrun, and a signal to each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import ACCIDENTS, REPOSITORY, World, accident, checkpoints, differences

pytestmark = pytest.mark.e2e

PRESET = REPOSITORY / "experiments" / "strategies" / "ddp.yaml"
TASKS, STEPS = 2, 6


def job_id() -> str:
    """A job's number whose port is free: Lightning takes 15000 and the last four digits."""
    for number in range(os.getpid(), os.getpid() + 10000):
        with socket.socket() as listener:
            try:
                listener.bind(("localhost", 15000 + number % 10000))
                return str(70000 + number % 10000)
            except OSError:
                continue
    raise AssertionError("no port is free")


def srun(
    start: Callable[..., Any], config: Path, folder: Path, job: str, accidents: dict[int, str]
) -> tuple[list[int], list[str], list[dict]]:
    """Start the tasks of a job step; returns exit code, output and report of each."""
    arguments = ["fit", "--config", str(config), "--config", str(PRESET), "--trainer.devices", str(TASKS),
                 "--trainer.num_nodes", "1", "--ckpt_path", "auto"]
    step = {"SLURM_JOB_ID": job, "SLURM_JOB_NAME": "musiccm", "SLURM_NTASKS": str(TASKS), "SLURM_NNODES": "1",
            "SLURM_NTASKS_PER_NODE": str(TASKS), "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0",
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}
    tasks = [start(arguments, folder, ACCIDENTS, SLURM_PROCID=str(n), SLURM_LOCALID=str(n),
                   ACCIDENT=accidents.get(n, "none:-1:0"), **step) for n in range(TASKS)]
    printed = [task.communicate(timeout=600)[0] for task in tasks]
    reports = [torch.load(folder / f"rank{n}.pt", weights_only=True) for n in range(TASKS)]
    return [task.returncode for task in tasks], printed, reports


def test_a_slurm_job_trains_together_leaves_with_75_and_goes_on(
    world: World, here: Path, start: Callable[..., Any]
) -> None:
    callbacks = [checkpoints(100), *accident(), {"class_path": "accidents.EachProcess"}]
    config = world.experiment(here, "job", callbacks, max_steps=STEPS, limit_val_batches=0)
    (here / "bin").mkdir()
    (here / "bin" / "scontrol").write_text(f"#!/bin/sh\necho \"$@\" >> {here / 'requeued'}\n")
    (here / "bin" / "scontrol").chmod(0o755)
    job = job_id()

    def alike(reports: list[dict], step: int, batches: int) -> None:
        one, two = reports
        assert one["environment"] == two["environment"] == "SLURMEnvironment"
        assert one["timeout_s"] == two["timeout_s"] == 600, "the preset's"
        assert one["step"] == two["step"] == step and len(one["clips"]) == len(two["clips"]) == batches
        # Each its own half of every batch, and the same weights from the gradients of both.
        assert all(len(set(a) | set(b)) == 16 for a, b in zip(one["clips"], two["clips"], strict=True))
        assert differences(one["weights"], two["weights"]) == []

    # As `--signal=USR1@300` has it: to every task, at no agreed moment of the step.
    codes, printed, reports = srun(start, config, here, job, {n: f"SIGUSR1:3:{n}" for n in range(TASKS)})
    assert codes == [75, 75], printed
    assert "SIGUSR1 received: saved" in printed[0] and "at step 4; exit code 75" in printed[0]
    assert not (here / "requeued").exists() and not list(here.rglob("hpc_ckpt*")), "the batch script requeues"
    alike(reports, step=4, batches=4)
    before = reports[0]["weights"]

    # Requeued, a job keeps its number.
    codes, printed, reports = srun(start, config, here, job, {})
    assert codes == [0, 0], printed
    alike(reports, step=STEPS, batches=STEPS - 4)
    moved = {place.strip("/").split(".")[0] for place in differences(before, reports[0]["weights"])}
    assert moved == {name.split(".")[0] for name in before}
