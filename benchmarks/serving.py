"""Requests a second and their times, on loopback: `musiccm serve` against a plain endpoint and against LitServe.

Each server is a process of its own, and all take the same requests in turn, of 1, 8 and 64 clients that each ask again
when they are answered. The plain endpoint is a FastAPI function that makes a clip and encodes it, in threads that run
side by side. LitServe has a worker a core, of one thread, which makes clips of up to eight requests together. Of ours,
one computes each clip by itself, to the bit, and one (`--together`) calls of several as one; both with a lane a core.
Seconds of a processor a clip are told beside the clips a second, as a busy machine gives more of itself to whoever has
more threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from musiccm.audio.io import encoded_audio
from musiccm.commands._timing import row, student_of
from musiccm.pipeline import Pipeline

STEPS, PROMPT = 4, "a calm piano melody over soft strings, 80 bpm"
#: Requests by clients: several for each, so that the first and the last, which wait alone, weigh little.
REQUESTS = {1: 8, 8: 32, 64: 256}
TARGET = 3.0
START_S, ANSWER_S = 300.0, 600.0


def plain(bundle: str, port: int) -> None:
    """The baseline's server."""
    import uvicorn
    from fastapi import Body, FastAPI, Response

    app, pipeline = FastAPI(), Pipeline.from_pretrained(bundle).accelerate()
    pipeline(PROMPT, STEPS)

    @app.post("/v1/audio/generate")
    def generate(body: dict[str, Any] = Body()) -> Response:  # noqa: B008 - how FastAPI is told
        made = pipeline(body["input"], body["num_inference_steps"], [body["seed"]], level="loudness")[0]
        return Response(bytes(encoded_audio(made, pipeline.sample_rate_hz, ".wav", "x")), media_type="audio/wav")

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def _family(process: int) -> list[Path]:
    """Folders of a process and of all that it began, where Linux has them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    family, found = [], [process] if process in parents else []
    while found:
        family.extend(found)
        found = [child for child, parent in parents.items() if parent in found]
    return [Path("/proc") / str(one) for one in family]


class Side:
    """A server in a process of its own, with what that begins."""

    def __init__(self, command: list[str], port: int, folder: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + START_S
        while True:
            try:
                httpx.get(f"{self.url}/ready").raise_for_status()
                return
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.end()
                    raise RuntimeError(f"{command} did not begin") from None
                time.sleep(0.2)

    def memory_mib(self) -> float:
        family = _family(self.process.pid)
        lines = [line for one in family for line in (one / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024 if family else math.nan

    def processor_s(self) -> float:
        """Seconds of a processor that it has used, where Linux tells."""
        family = _family(self.process.pid)
        fields = [(one / "stat").read_text().rpartition(")")[2].split() for one in family]
        ticks = sum(int(one[11]) + int(one[12]) for one in fields)
        return ticks / os.sysconf("SC_CLK_TCK") if family else math.nan

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that it left, too
        self.process.wait()

    def asked(self, clients: int, requests: int, first_seed: int) -> tuple[list[float], float]:
        """Seconds of each request, and of all."""
        return asyncio.run(self._asked(clients, requests, first_seed))

    def costs(self, clients: int, requests: int, first_seed: int) -> tuple[list[float], float, float]:
        """The same, and seconds of a processor a request."""
        before = self.processor_s()
        times, all_s = self.asked(clients, requests, first_seed)
        return times, all_s, (self.processor_s() - before) / requests

    async def _asked(self, clients: int, requests: int, first_seed: int) -> tuple[list[float], float]:
        left, times = iter(range(first_seed, first_seed + requests)), []

        async def client(http: httpx.AsyncClient) -> None:
            for seed in left:
                begin = time.perf_counter()
                answer = await http.post(f"{self.url}/v1/audio/generate", json={
                    "input": PROMPT, "num_inference_steps": STEPS, "seed": seed})
                answer.raise_for_status()
                assert answer.content[:4] == b"RIFF"
                times.append(time.perf_counter() - begin)

        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=ANSWER_S, limits=limits) as http:
            begin = time.perf_counter()
            await asyncio.gather(*(client(http) for _ in range(clients)))
            return times, time.perf_counter() - begin


def percentile(times: list[float], percent: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def run(bundle: str) -> list[dict]:
    student, rows, lanes = student_of(bundle), [], str(os.cpu_count() or 1)
    ports, this = free_ports(4), Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        serve = [sys.executable, "-m", "musiccm", "serve", "--model", f"m={student}", "--queue", "128", "--folder"]
        commands = {"plain": [sys.executable, str(this), str(student), str(ports[0])],
                    "litserve": [sys.executable, str(this.with_name("_litserve.py")), str(student), str(ports[1])],
                    "serve": [*serve, "exact", "--lanes", lanes, "--port", str(ports[2])],
                    "serve --together": [*serve, "together", "--together", "--lanes", lanes, "--running", "16",
                                         "--port", str(ports[3])]}
        sides: dict[str, Side] = {}
        try:
            for name, port in zip(commands, ports, strict=True):
                sides[name] = Side(commands[name], port, folder)
                sides[name].asked(1, 2, 0)
            before = {name: side.memory_mib() for name, side in sides.items()}
            for clients, requests in REQUESTS.items():
                found = {name: side.costs(clients, requests, 100 * clients) for name, side in sides.items()}
                base_times, base_s, base_cost = found.pop("plain")
                for name, (times, all_s, cost) in found.items():
                    case = f"{name}, {clients} client{'s' if clients > 1 else ''}"
                    target = TARGET if clients == 64 and name == "serve --together" else None
                    speed = row(f"{case}: clips a second", [requests / all_s], [requests / base_s], "1/s", target,
                                lower_is_better=False)
                    rows.append({**speed, "n": requests})
                    spent = row(f"{case}: seconds of a processor a clip", [cost], [base_cost], "s")
                    rows.append({**spent, "n": requests})
                    for percent in (50, 99):
                        spent = row(f"{case}: p{percent} of a request", [percentile(times, percent)],
                                    [percentile(base_times, percent)], "s")
                        rows.append({**spent, "n": requests})
            grown = {name: side.memory_mib() - before[name] for name, side in sides.items()}
            for name in list(sides)[1:]:
                rows.append(row(f"{name}: memory that grew under load", [grown[name]], [grown["plain"]], "MiB"))
        finally:
            for side in sides.values():
                side.end()
    return rows


if __name__ == "__main__":
    plain(sys.argv[1], int(sys.argv[2]))
