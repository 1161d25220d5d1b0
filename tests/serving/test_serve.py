"""`musiccm serve` as a process: what it refuses, how it ends, and that no kill loses a job or makes one twice."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tiny_bundle import build_random_student

from musiccm import locks
from musiccm.cli import main
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, ServedModel
from musiccm.serving.uploads import secret_hash
from tests.forked import Command, free_port

KEY = "0123456789abcdef"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--host", "0.0.0.0"], "others can reach that address, and there are no keys"),
    (["--key-file", "none"], "none: the file of keys cannot be read"),
    (["--host", "203.0.113.1", "--public", "--port", "0"], "cannot be listened on"),
    (["--warm-up", "4x"], "--warm-up: expected BATCH, BATCHxSTEPS"),
    (["--model", "no-such", "--port", "0"], "no-such"),
    (["--model", "=x", "--port", "0"], "--model =x"),
])
def test_what_it_refuses(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSICCM_KEYS", raising=False)
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_found_before_models_are_read(tmp_path, capsys):
    (tmp_path / "served").mkdir()
    lock = locks.hold(tmp_path / "served" / locks.LOCK, tmp_path)
    assert main(["serve", "--folder", str(tmp_path / "served"), "--model", "no-such", "--port", "0"]) == 2
    lock.release()
    assert f"--folder {tmp_path / 'served'}: in use by" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


class Served:
    def __init__(self, model: Path, folder: Path, port: int, *more: object) -> None:
        self.process = Command(["serve", "--model", f"m={model}", "--port", port, "--running", 2, "--drain", 20, *more],
                               folder, variables={"MUSICCM_KEYS": KEY})
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30,
                                   headers={"Authorization": f"Bearer {KEY}"})
        for _ in range(600):
            try:
                assert self.client.get("/ready").status_code == 200
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.communicate(1)
                time.sleep(0.1)
        raise AssertionError("it did not begin")


@pytest.fixture
def processes() -> Iterator[list[Served]]:
    begun: list[Served] = []
    yield begun
    for served in begun:
        served.client.close()
        served.process.kill()


@pytest.mark.e2e
def test_kills_lose_nothing_and_sigterm_ends_in_good_order(model, tmp_path, processes):
    port = free_port()
    processes.append(Served(model, tmp_path, port))
    first = processes[-1]
    ids = [first.client.post("/v1/jobs", json={"prompt": "x", "seed": seed, "steps": 2}).json()["id"]
           for seed in range(12)]
    for _ in range(600):
        if sum(job["state"] == "done" for job in first.client.get("/v1/jobs").json()["jobs"]) >= 3:
            break
        time.sleep(0.02)
    first.process.kill()
    first.process.communicate(20)
    with sqlite3.connect(tmp_path / "served/jobs.sqlite") as db:
        done = {job for job, in db.execute("SELECT id FROM jobs WHERE state = 'done'")}
    assert len(done) >= 3
    before = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "served/results").glob("*/samples.wav")
              if path.parent.name in done}
    processes.append(Served(model, tmp_path, port))
    second = processes[-1]
    last = second.client.post("/v1/jobs", json={"prompt": "x", "seconds": 5, "steps": 2, "priority": 10}).json()["id"]
    for _ in range(600):
        if second.client.get(f"/v1/jobs/{last}").json()["state"] == "running":
            break
        time.sleep(0.01)
    second.process.terminate()
    printed, _ = second.process.communicate(60)
    assert second.process.returncode == 0, printed
    assert "no more jobs are taken" in printed and "Traceback" not in printed
    served = ServedModel.of("m", Pipeline.from_pretrained(model).accelerate())
    with Engine([served], tmp_path / "served") as third:
        views = [third.wait(job, secret_hash(KEY)) for job in [*ids, last]]
    assert [view.state for view in views] == ["done"] * 13
    assert [view.request.seed for view in views[:-1]] == list(range(12))
    with sqlite3.connect(tmp_path / "served/jobs.sqlite") as db:
        assert db.execute("SELECT COUNT(*), COUNT(DISTINCT id) FROM jobs").fetchone() == (13, 13)
    after = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "served/results").glob("*/samples.wav")}
    assert before.items() <= after.items()  # what was done was left alone


@pytest.mark.slow
@pytest.mark.e2e
def test_a_thousand_jobs_and_twenty_kills(model, tmp_path, processes):
    """Jobs come while the server is killed over and over; each that was taken is made, once."""
    port, taken, kills = free_port(), [], 20
    for kill in range(kills + 1):
        processes.append(Served(model, tmp_path, port, "--queue", 2000))
        served = processes[-1]
        for _ in range(50 if kill < kills else 0):
            asked = {"prompt": "x", "seed": len(taken), "steps": 1, "seconds": 0.3}
            answer = served.client.post("/v1/jobs", json=asked)
            assert answer.status_code == 202
            taken.append(answer.json()["id"])
        if kill < kills:
            time.sleep(0.05 * (kill % 5))
            served.process.kill()
            served.process.communicate(20)
    until = time.monotonic() + 1200
    while served.client.get("/health").json()["queued"] or served.client.get("/health").json()["running"]:
        assert time.monotonic() < until
        time.sleep(0.5)
    served.process.terminate()
    assert served.process.communicate(60) and served.process.returncode == 0
    with sqlite3.connect(tmp_path / "served/jobs.sqlite") as db:
        rows = db.execute("SELECT id, state FROM jobs ORDER BY number").fetchall()
    assert rows == [(job, "done") for job in taken] and len(taken) == len(set(taken)) == 1000
    assert {path.parent.name for path in (tmp_path / "served/results").glob("*/samples.wav")} == set(taken)
