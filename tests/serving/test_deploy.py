"""Two replicas on this machine, by Ray Serve and by LitServe, of which one is killed under load: nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import soundfile
import torch
from gated import asked
from tiny_bundle import build_random_student

from musiccm.serving import Engine, EngineSettings, load_model
from musiccm.serving.replica import Ask, elsewhere
from tests.forked import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
JOBS = 24
pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"student={build_random_student(tmp_path_factory.mktemp('bundles'))}"


@pytest.fixture(autouse=True)
def deploy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DEPLOY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DEPLOY), *sys.path]))


def check(model: str, folder: Path, ask: Ask, kill: Callable[[], None]) -> None:
    served = load_model(model)
    with Engine([served], folder, EngineSettings(max_running=2), elsewhere=elsewhere(ask)) as engine:
        jobs = [engine.submit(asked(seed=seed, steps=2, level="none")).id for seed in range(JOBS)]
        assert engine.wait(jobs[3]).state == "done"
        kill()
        assert engine.state().queued > 0  # it was under load
        views = [engine.wait(job) for job in jobs]
        assert [(view.state, view.error) for view in views] == [("done", None)] * JOBS
        made = [torch.from_numpy(soundfile.read(engine.results.samples(job), dtype="float32")[0]) for job in jobs]
    for seed in (0, JOBS // 2, JOBS - 1):
        alone = served.model([asked().text], 2, [seed], level="none")[0]
        torch.testing.assert_close(made[seed], alone, atol=1e-5, rtol=0)  # the processes may differ in threads


def test_ray(model, tmp_path):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install musiccm[deploy]")
    import ray_serve
    from ray import serve
    from ray.util.state import list_actors

    ray.init(num_cpus=2, log_to_driver=False)
    try:
        ask = ray_serve.deployed([model], least=2, most=2, each=1)

        def kill() -> None:
            replicas = [actor for actor in list_actors() if "Music" in (actor.name or "") and actor.state == "ALIVE"]
            assert len(replicas) == 2
            os.kill(replicas[0].pid, signal.SIGKILL)

        check(model, tmp_path, ask, kill)
    finally:
        serve.shutdown()
        ray.shutdown()


def test_litserve(model, tmp_path):
    pytest.importorskip("litserve", reason="needs LitServe: pip install musiccm[deploy]")
    import subprocess
    import time

    import lit_serve

    ports = [free_port(), free_port()]
    replicas = [subprocess.Popen([sys.executable, DEPLOY / "lit_serve.py", "replica", "--model", model, "--port",
                                  str(port), "--accelerator", "cpu"], start_new_session=True) for port in ports]
    try:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        until = time.monotonic() + 300
        for url, replica in zip(urls, replicas, strict=True):
            while not _healthy(url):
                assert replica.poll() is None and time.monotonic() < until
                time.sleep(0.2)
        check(model, tmp_path, lit_serve.asking(urls), lambda: os.killpg(replicas[0].pid, signal.SIGKILL))
    finally:
        for replica in replicas:
            if replica.poll() is None:
                os.killpg(replica.pid, signal.SIGKILL)
            replica.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
