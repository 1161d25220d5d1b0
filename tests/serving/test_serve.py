"""`musiccm serve` as a process: what it refuses, how it ends, and that no kill loses a job or makes one twice."""

from __future__ import annotations

import io
import json
import random
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
import torch
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


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_files_that_cannot_grow_harm_nothing_that_comes_later(model, tmp_path, processes):
    """As on a full disk, but for every user and without one: the kernel lets no file of the server grow."""
    processes.append(Served(model, tmp_path, free_port()))
    client, folder = processes[-1].client, tmp_path / "served"
    tone = io.BytesIO()
    soundfile.write(tone, torch.sin(torch.arange(16000) / 9).numpy() / 2, 16000, format="WAV")

    def answers() -> list[int]:
        asked = {"input": "x", "num_inference_steps": 1}
        found = [client.post("/v1/audio/generate", json=asked),
                 client.post("/v1/audio/generate", json={**asked, "stream": True, "audio_length": 1.0}),
                 client.post("/v1/jobs", json={"prompt": "x", "steps": 1}),
                 client.post("/v1/uploads", content=tone.getvalue(), headers={"Content-Type": "audio/wav"})]
        assert not any(answer.status_code == 507 and "no-room" not in answer.text for answer in found)
        return [answer.status_code for answer in found]

    def grow_to(size: int) -> None:
        resource.prlimit(processes[-1].process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    assert answers() == [200, 200, 202, 201]
    upload = next((folder / "uploads").iterdir()).name
    grow_to(200_000)  # enough for the table, too little for a result
    assert client.post("/v1/audio/generate", json={"input": "x", "audio_length": 20}).status_code == 507
    grow_to(0)
    assert answers() == [507] * 4 and client.get("/v1/jobs").status_code == 200
    assert client.delete(f"/v1/uploads/{upload}").status_code == 507  # which cannot be noted, but makes room
    assert [path for path in folder.rglob(".*") if path.name != locks.LOCK] == []
    assert list((folder / "uploads").iterdir()) == []
    grow_to(resource.RLIM_INFINITY)
    asked = {"prompt": "x", "steps": 1, "task": "vary", "source": upload}
    assert client.post("/v1/jobs", json=asked).status_code == 404
    assert answers() == [200, 200, 202, 201]


class Clients:
    """Threads that ask for jobs, each under a key of its own, until every one is taken; answers that are lost are asked
    for again."""

    def __init__(self, port: int, count: int, each: int) -> None:
        self.taken: dict[int, str] = {}
        self.lost, self.refused = 0, 0
        self.up = threading.Event()
        self._port, self._count, self._each, self._changed = port, count, each, threading.Condition()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30,
                          headers={"Authorization": f"Bearer {KEY}"}) as client:
            for seed in range(number * self._each, (number + 1) * self._each):
                job = self._taken(client, seed)
                with self._changed:
                    self.taken[seed] = job
                    self._changed.notify_all()

    def _taken(self, client: httpx.Client, seed: int) -> str:
        asked = {"prompt": "x", "seed": seed, "steps": 1, "seconds": 0.3}
        while self.up.wait(120):
            try:
                answer = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": f"clip-{seed}"})
            except httpx.TransportError:
                self.lost += 1
                continue
            if answer.status_code == 202:
                return answer.json()["id"]
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1, answer.text
            self.refused += 1
            time.sleep(0.1)
        raise AssertionError("the server is not there")

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.taken) >= count, 600), len(self.taken)

    def join(self) -> None:
        self.wait(self._count * self._each)
        for thread in self._threads:
            thread.join(60)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_thousand_jobs_and_twenty_kills(model, tmp_path, processes):
    """Clients go on asking while the server is killed over and over; what each asked for is made, and once."""
    port, kills, running = free_port(), 20, 2
    clients = Clients(port, 4, 250)
    for count in [*sorted(random.Random(0).sample(range(10, 990), kills)), 0]:
        processes.append(Served(model, tmp_path, port))
        clients.up.set()
        if count:
            clients.wait(count)
            clients.up.clear()
            processes[-1].process.kill()  # with requests of all clients on the way
            processes[-1].process.communicate(20)
    clients.join()
    last = processes[-1]
    until = time.monotonic() + 600
    while (state := last.client.get("/health").json())["queued"] or state["running"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert last.client.post("/v1/jobs", json={"prompt": "x", "seed": 7, "steps": 1, "seconds": 0.3},
                            headers={"Idempotency-Key": "clip-7"}).json()["id"] == clients.taken[7]
    last.process.terminate()
    assert last.process.communicate(60) and last.process.returncode == 0
    assert clients.lost >= kills
    with sqlite3.connect(tmp_path / "served/jobs.sqlite") as db:
        rows = db.execute("SELECT id, state, starts, request FROM jobs").fetchall()
    made = {json.loads(request)["seed"]: job for job, _, _, request in rows}
    assert made == clients.taken and len(rows) == len(made) == 1000
    assert {state for _, state, _, _ in rows} == {"done"}
    assert sum(starts for _, _, starts, _ in rows) <= 1000 + running * kills  # begun anew: those that ran at a kill
    results = tmp_path / "served/results"
    assert {path.parent.name for path in results.glob("*/samples.wav")} == set(made.values())
    pipeline = Pipeline.from_pretrained(model).accelerate()
    for seed in (0, 333, 666, 999):
        own = pipeline.compose("x", 0.3, 1, seed, level="loudness")
        samples, _ = soundfile.read(results / made[seed] / "samples.wav", dtype="float32")
        torch.testing.assert_close(torch.from_numpy(samples), own, rtol=0, atol=0)
