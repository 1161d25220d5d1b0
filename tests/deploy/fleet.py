"""A server with replicas, of which one is killed under load."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from tiny_bundle import CAPTIONS

from musiccm.audio.io import encoded_audio
from musiccm.pipeline import Pipeline
from tests.forked import free_port

ROOT = Path(__file__).parents[2]
JOBS, CLIENTS = 36, 6


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has begun, and those that they have."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if after_name[0] != "Z":
                parents.setdefault(int(after_name[1]), []).append(int(folder.name))
    waiting = [pid]
    while waiting:
        waiting += (found := parents.get(waiting.pop(), []))
        yield from found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Fleet:
    """A server of `deploy/` as a process.

    Args:
        program: Its file.
        model: A bundle.
        folder: To work in.
        is_replica: Tells the replicas among its processes by their command lines.
        more: Further options.
    """

    def __init__(
        self, program: str, model: Path, folder: Path, is_replica: Callable[[str], bool], *more: str
    ) -> None:
        self.folder, self._is_replica, port = folder, is_replica, free_port()
        self._said = folder / "said"
        environment = {**os.environ, "OMP_NUM_THREADS": "1",
                       "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "deploy" / program), "--model", f"student={model}", "--port", str(port),
                 "--replicas", "2", "--device", "cpu", *more],
                cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def until(self, true: Callable[[], bool], within_s: float) -> None:
        """Wait until something holds."""
        end = time.monotonic() + within_s
        while not true():
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def replicas(self) -> set[int]:
        return {pid for pid in descendants(self.process.pid) if self._is_replica(command_line(pid))}

    def end(self) -> None:
        """End whatever is left of it."""
        self.client.close()
        left = [*descendants(self.process.pid)]
        if self.process.poll() is None:
            self.process.kill()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(30)


def lose_a_replica_under_load(fleet: Fleet, model: Path) -> None:
    """Ask for some dozens of clips from several threads, kill one of two replicas, and compare what comes."""
    fleet.until(fleet.ready, 900)
    first = fleet.replicas()
    assert len(first) == 2, fleet.said()
    clips: dict[int, bytes] = {}

    def ask(client: int) -> None:
        for seed in range(client, JOBS, CLIENTS):
            asked = {"input": CAPTIONS[seed % 4], "seed": seed, "num_inference_steps": 2}
            answer = fleet.client.post("/v1/audio/generate", json=asked)
            assert answer.status_code == 200, answer.text
            clips[seed] = answer.content

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    fleet.until(lambda: len(clips) >= 3, 60)
    lost = min(first)
    os.kill(lost, signal.SIGSTOP)  # it keeps the question that it has, while the other one goes on
    made = len(clips)
    fleet.until(lambda: len(clips) >= made + 3, 60)
    os.kill(lost, signal.SIGKILL)
    assert len(clips) < JOBS
    for thread in threads:
        thread.join(300)
    assert sorted(clips) == list(range(JOBS)), fleet.said()
    fleet.until(lambda: len(fleet.replicas()) == 2, 400)
    assert lost not in fleet.replicas()  # another one was begun in its place

    processes = [*descendants(fleet.process.pid)]
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(60) == 0, fleet.said()
    assert "no more jobs are taken" in fleet.said()
    # Ray's router logs failures of its own that it never reads
    frames = [line for line in fleet.said().splitlines() if line.lstrip().startswith('File "')]
    assert not [line for line in frames if "src/musiccm" in line or "/deploy/" in line], fleet.said()
    gone_by = time.monotonic() + 60
    while left := [line for line in map(command_line, processes) if line]:
        assert time.monotonic() < gone_by, left
        time.sleep(0.1)
    with sqlite3.connect(fleet.folder / "served/jobs.sqlite") as db:
        rows = db.execute("SELECT state, starts, COUNT(*) FROM jobs GROUP BY state, starts").fetchall()
    assert rows == [("done", 1, JOBS)]
    pipeline = Pipeline.from_pretrained(model).accelerate()
    for seed, clip in clips.items():
        own = pipeline([CAPTIONS[seed % 4]], 2, [seed], level="loudness")[0]
        assert clip == bytes(encoded_audio(own, pipeline.sample_rate_hz, ".wav", "clip")), seed
