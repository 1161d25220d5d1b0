"""The HTTP API over real sockets: sound, streams, events, problems of every kind, and clients that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import torch
from gated import Gate, Gated
from tiny_bundle import build_random_student

from musiccm.audio.io import encoded_audio
from musiccm.errors import MusiccmError
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, EngineSettings, Limits, MusicRequest, ServedModel, evidence
from musiccm.serving.http import app, connection
from musiccm.serving.http.app import MEDIA_TYPES, make_app
from musiccm.serving.http.evidence import MAX_WAITING
from musiccm.serving.http.gate import Keys, Patience, is_loopback
from musiccm.serving.http.metrics import Metrics
from musiccm.serving.http.server import Listening, bound_socket, make_server
from musiccm.serving.tasks import perform

PROBLEM = "application/problem+json"
KEYS = ["k" * 32, "another-key-of-somebody"]
TEXT = "a calm piano melody"


class Server:
    def __init__(self, folder: Path) -> None:
        self.pipeline = Pipeline.from_pretrained(build_random_student(folder / "bundles")).accelerate()
        self.slowed = Gated(self.pipeline)
        self.gate = self.slowed.network
        self.gate.open.set()
        metrics = Metrics()
        limits = Limits(max_seconds=20, max_upload_bytes=200_000, max_upload_s=5)
        self.engine = Engine([ServedModel.of("student", self.slowed)], folder / "engine",
                             EngineSettings(max_queued=2, max_running=1, max_streams=1, stall_s=5, limits=limits),
                             metrics.told).start()
        self.patience = Patience(chunk_s=0.5, body_s=2, send_s=1)
        self.app = make_app(self.engine, metrics, Keys([]), self.patience)
        self.keyed = make_app(self.engine, metrics, Keys(KEYS))
        listening = bound_socket("127.0.0.1", 0)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # it is soon full, also on this machine
        self.port = listening.getsockname()[1]
        self._server = make_server(self.app, self.engine, Listening(drain_s=2))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self.engine.close()

    def job(self, **body: Any) -> str:
        answer = self.client.post("/v1/jobs", json={"prompt": TEXT, "seed": 3, "steps": 1, **body})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        return answer.json()["id"]

    def done(self, job: str) -> dict[str, Any]:
        assert self.engine.wait(job, timeout_s=30).state == "done"
        return self.client.get(f"/v1/jobs/{job}").json()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def held(server: Server) -> Iterator[Gate]:
    """Network calls wait until the test lets them go."""
    server.gate.open.clear()
    yield server.gate
    server.gate.open.set()
    until(lambda: server.engine.state().running + server.engine.state().queued + server.engine.state().streams == 0)


def until(true: Any, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def rejected(server: Server, reason: str) -> float:
    """How often the metrics say that there was no room for a request."""
    found = re.search(rf'^musiccm_rejected_total{{reason="{reason}"}} (.+)$', server.client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def problem(answer: httpx.Response, status: int, kind: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found = answer.json()
    assert found["status"] == status and found["title"] and found["detail"]
    if kind is not None:
        assert found["type"] == f"urn:musiccm:problem:{kind}"
    return found


def test_generate_gives_the_bytes_that_the_command_writes(server):
    own = server.pipeline([TEXT], 2, [3], level="loudness")[0]
    for form in ("wav", "flac", "mp3"):
        answer = server.client.post("/v1/audio/generate", json={
            "input": TEXT, "model": "student", "response_format": form, "num_inference_steps": 2, "seed": 3,
            "audio_start": 0, "negative_prompt": "", "guidance_scale": None})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("audio/") and answer.headers["x-musiccm-seed"] == "3"
        assert answer.content == bytes(encoded_audio(own, 16000, f".{form}", "x"))
    answer = server.client.post("/v1/audio/generate", json={"prompt": TEXT, "audio_length": 0.3, "seed": -1,
                                                            "num_inference_steps": 1})
    assert soundfile.info(io.BytesIO(answer.content)).frames == 4800
    assert 0 <= int(answer.headers["x-musiccm-seed"]) < 2**31


def test_a_chunked_stream_is_the_whole(server):
    asked = {"input": TEXT, "stream": True, "seed": 3, "num_inference_steps": 2, "audio_length": 3.0}
    with server.client.stream("POST", "/v1/audio/generate", json={**asked, "level": "none"}) as answer:
        assert answer.status_code == 200 and answer.headers["transfer-encoding"] == "chunked"
        chunks = list(answer.iter_raw())
    found, _ = soundfile.read(io.BytesIO(b"".join(chunks)), dtype="float32")
    whole = server.pipeline.compose(TEXT, 3.0, 2, 3)
    assert len(chunks) > 2
    torch.testing.assert_close(torch.from_numpy(found), whole.clamp(-1, 1), atol=1.5e-4, rtol=0)


def test_events_tell_the_whole_life_of_a_job(server, held):
    job = server.job(steps=4)
    events: list[tuple[str, dict]] = []

    def listen() -> None:
        with server.client.stream("GET", f"/v1/jobs/{job}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    events.append((kind, json.loads(line[5:])))

    listener = threading.Thread(target=listen)
    listener.start()
    until(lambda: events and events[-1][0] == "running")
    held.open.set()
    listener.join(30)
    states = [kind for kind, _ in events]
    assert states[-1] == "done" and set(states) <= {"queued", "running", "done"}
    assert all(kind == data["state"] for kind, data in events)
    calls = [data["calls"] for _, data in events]
    assert calls == sorted(calls) and calls[-1] == 4
    last = events[-1][1]
    assert last["progress"] == 1 and last["result"]["seconds"] == pytest.approx(0.64)
    for name, kind in (("audio", "audio/wav"), ("spectrogram", "image/png"), ("sidecar", "application/json")):
        answer = server.client.get(last["links"][name])
        assert answer.status_code == 200 and answer.headers["content-type"] == kind
    part = server.client.get(last["links"]["audio"], headers={"Range": "bytes=0-3"})
    assert part.status_code == 206 and part.content == b"RIFF"


def test_uploads_are_edited(server):
    tone = encoded_audio(torch.sin(torch.arange(12000) / 9) / 2, 16000, ".flac", "x")
    answer = server.client.post("/v1/uploads", content=bytes(tone), headers={"Content-Type": "audio/flac"})
    assert answer.status_code == 201 and answer.json()["seconds"] == 0.75
    source = answer.json()["id"]
    longer = server.done(server.job(task="continue", source=source, seconds=1.2))
    assert longer["result"]["seconds"] == 1.2 and "is kept to the sample" in longer["result"]["says"]
    read, _ = soundfile.read(io.BytesIO(server.client.get(f"/v1/jobs/{longer['id']}/audio?format=flac").content))
    original, _ = soundfile.read(io.BytesIO(bytes(tone)))
    assert (read[:10_000] == original[:10_000]).all()
    again = server.done(server.job(task="inpaint", source=longer["id"], **{"from": 0.3, "to": 0.6}))
    assert again["request"]["from_s"] == 0.3
    assert not any((server.engine.folder / "sources").iterdir())


@pytest.mark.parametrize(("body", "status", "field"), [
    ({"input": ""}, 422, "input"), ({}, 422, "input"), ({"input": TEXT, "dance": 1}, 422, "dance"),
    ({"input": TEXT, "seed": "3"}, 422, "seed"), ({"input": TEXT, "seed": 2**63}, 422, "seed"),
    ({"input": TEXT, "audio_length": 21}, 422, "audio_length"),
    ({"input": TEXT, "audio_length": 0}, 422, "audio_length"),
    ({"input": TEXT, "num_inference_steps": 51}, 422, "num_inference_steps"),
    ({"input": TEXT, "guidance_scale": 2}, 422, None),
    ({"input": TEXT, "model": "../../etc"}, 422, "model"), ({"input": TEXT, "model": ""}, 422, "model"),
    ({"input": TEXT, "negative_prompt": "x"}, 422, None),
    ({"input": TEXT, "audio_start": 1}, 422, "audio_start"), ({"input": TEXT, "response_format": "aac"}, 422, None),
    ({"input": TEXT, "stream": True, "response_format": "mp3"}, 422, "response_format"),
    ({"input": "x" * 1001}, 422, "input"), ({"input": "\ud800"}, 422, None),
])
def test_a_bad_field_is_named(server, body, status, field):
    content = json.dumps(body).encode()
    found = problem(server.client.post("/v1/audio/generate", content=content,
                                       headers={"Content-Type": "application/json"}), status)
    if field is not None:
        assert found["errors"][0]["field"] == field


@pytest.mark.parametrize(("body", "field"), [
    ({"prompt": "\0"}, "prompt"), ({"prompt": "  "}, "prompt"),
    ({"prompts": [{"at": 0, "text": "\0"}]}, "prompts.0.text"),
    ({"prompts": [{"at": 0, "text": "a"}, {"at": 1, "text": " "}], "task": "compose"}, "prompts.1.text"),
    ({"prompts": [{"at": 0, "text": "a"}, {"at": 1e308, "text": "x"}], "task": "compose"}, "prompts.1.at"),
    ({"prompts": [{"at": 0, "text": "a"}, {"at": 19, "text": "x"}], "task": "compose"}, "prompts"),
    ({"prompt": TEXT, "task": "vary", "source": "\udfff"}, "source"),
])
def test_a_bad_field_of_a_job_is_named(server, body, field):
    answer = server.client.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert [one["field"] for one in problem(answer, 422)["errors"]] == [field]


def test_half_a_character_is_refused_in_every_text(server):
    """JSON can state a surrogate alone, which no text holds, in any string and any name of a field."""
    bodies = server.client.get("/openapi.json").json()["components"]["schemas"]
    for path, kind, rest in (("/v1/jobs", "JobBody", {"prompt": TEXT, "task": "vary", "source": "x" * 32}),
                             ("/v1/audio/generate", "GenerateBody", {"input": TEXT}),
                             (f"/v1/jobs/{'0' * 32}/prompt", "PromptBody", {})):
        texts = [name for name, field in bodies[kind]["properties"].items()
                 if "string" in [one.get("type") for one in field.get("anyOf", [field])]]
        assert texts
        for name in [*texts, "\udfff"]:
            answer = server.client.post(path, content=json.dumps({**rest, name: "\udfff"}),
                                        headers={"Content-Type": "application/json"})
            problem(answer, 422)
    odd = [{"at": 0, "text": "\udfff"}]
    problem(server.client.post("/v1/jobs", content=json.dumps({"prompts": odd}),
                               headers={"Content-Type": "application/json"}), 422)
    for path in ("/v1/jobs/%ED%BF%BF", "/v1/jobs/%00/audio", "/v1/jobs/%ED%BF%BF/events"):
        problem(server.client.get(path), 404)
    problem(server.client.delete("/v1/uploads/%ED%BF%BF"), 404)


def test_other_bad_requests(server):
    client = server.client
    json_kind = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[]", b"NaN", b"[" * 5000, b"\xff", b'{"input": NaN}'):
        answer = client.post("/v1/jobs", content=content, headers=json_kind)
        problem(answer, 400 if content in (b"\xff", b"[" * 5000) else 422)
    problem(client.post("/v1/jobs", content=b"prompt=x"), 415)
    problem(client.post("/v1/jobs", data={"prompt": "x"}), 415)
    problem(client.post("/v1/uploads", json={}), 415)
    for path, kind in (("/v1/uploads", "audio/wav"), ("/v1/jobs", "application/json")):
        answer = client.post(path, content=gzip.compress(b"{}"),
                             headers={"Content-Type": kind, "Content-Encoding": "gzip"})
        assert "without Content-Encoding, found gzip" in problem(answer, 415)["detail"]
        assert answer.headers["accept-encoding"] == "identity"
    problem(client.post("/v1/jobs", content=b" " * 300_000, headers=json_kind), 413)
    problem(client.post("/v1/jobs", json={"prompt": TEXT, "prompts": [{"at": 0, "text": TEXT}]}), 422)
    problem(client.post("/v1/jobs", json={"prompt": TEXT, "task": "vary", "source": "../jobs.sqlite"}), 404)
    problem(client.get("/v1/jobs/%2e%2e%2fjobs.sqlite"), 404)
    problem(client.get(f"/v1/jobs/{'0' * 32}/audio"), 404)
    problem(client.get("/nowhere"), 404)
    problem(client.post("/nowhere"), 404)
    problem(client.get("/v1/jobs?limit=0"), 422)
    problem(client.get("/v1/models", headers={"Host": "music.example"}), 421)
    audio = {"Content-Type": "audio/wav"}
    problem(client.post("/v1/uploads", content=b"#!/bin/sh", headers=audio), 415)
    problem(client.post("/v1/uploads", content=b"", headers=audio), 422)
    problem(client.post("/v1/uploads", content=b"\0" * 200_001, headers=audio), 413)
    long = bytes(encoded_audio(torch.sin(torch.arange(6 * 16000) / 9), 16000, ".mp3", "x"))
    problem(client.post("/v1/uploads", content=long, headers=audio), 413)
    assert list((server.engine.folder / "uploads").glob(".*")) == []
    assert server.done(server.job())["state"] == "done"  # the next request is unharmed


@pytest.mark.parametrize("body", [
    {"prompt": TEXT, "sampler": "x" * 100_000}, {"prompt": TEXT, "x" * 100_000: 1},
    {"prompt": TEXT, **{f"k{number}": 1 for number in range(5000)}},
])
def test_a_problem_is_brief_whatever_it_quotes(server, body):
    answer = server.client.post("/v1/jobs", json=body)
    assert problem(answer, 422)["errors"] and len(answer.content) < 5000


def test_a_method_that_a_path_lacks_is_said_before_all_else(server):
    for method, path, allowed in (("PUT", "/v1/jobs", "GET, POST"), ("OPTIONS", "/v1/jobs", "GET, POST"),
                                  ("PATCH", "/v1/uploads", "POST"), ("PUT", "/v1/jobs/x", "DELETE, GET"),
                                  ("GET", "/v1/uploads/x", "DELETE"), ("OPTIONS", "/health", "GET"),
                                  ("POST", "/health", "GET"), ("POST", "/v1/jobs/x", "DELETE, GET")):
        for options in ({}, {"json": {}}):
            answer = server.client.request(method, path, **options)
            problem(answer, 405)
            assert answer.headers["allow"] == allowed


def test_json_that_ends_too_early_is_pointed_at(server):
    for content, place in ((b"{", "character 1"), (b'{"prompt": "x",,}', "character 15")):
        found = problem(server.client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"}),
                        422)
        assert found["errors"][0]["field"] == "body" and f"expected JSON, found none at {place}" in found["detail"]


def test_refusals_of_work_name_the_fields_that_were_sent(server):
    tone = bytes(encoded_audio(torch.sin(torch.arange(16000) / 9), 16000, ".wav", "tone"))
    source = server.client.post("/v1/uploads", content=tone, headers={"Content-Type": "audio/wav"}).json()["id"]
    for body, said in (({"task": "continue", "seconds": 0.5}, "seconds: the clip lasts 1.00 s already"),
                       ({"task": "inpaint", "from": 0.5, "to": 2}, "from, to: expected 0 <= from < to <= 1.00 s")):
        answer = server.client.post("/v1/jobs", json={"prompt": TEXT, "steps": 1, "source": source, **body})
        found = problem(answer, 422)
        assert found["detail"].startswith(said) and found["errors"][0]["field"] == said.partition(": ")[0]


def test_the_description_states_the_bounds_of_this_server(server):
    bodies = server.client.get("/openapi.json").json()["components"]["schemas"]
    job, generate = (bodies[name]["properties"] for name in ("JobBody", "GenerateBody"))

    def given(field: dict[str, Any]) -> dict[str, Any]:
        return next(one for one in field.get("anyOf", [field]) if one.get("type") != "null")

    assert given(job["seconds"])["maximum"] == 20 and given(job["steps"])["maximum"] == 200
    assert given(job["seed"])["maximum"] == 2**63 - 1 and given(job["prompts"])["maxItems"] == 64
    assert bodies["PromptAt"]["properties"]["at"]["maximum"] == 20
    assert given(job["prompt"])["maxLength"] == generate["input"]["maxLength"] == 1000
    assert given(generate["num_inference_steps"])["maximum"] == 200 and given(job["model"])["enum"] == ["student"]
    for name, value in (("steps", 201), ("seconds", 20.5), ("prompt", "x" * 1001)):
        problem(server.client.post("/v1/jobs", json={"prompt": TEXT, name: value}), 422)


def test_evidence_has_a_short_queue_of_its_own(server, monkeypatch):
    job, before = server.job(), rejected(server, "evidence_full")
    server.done(job)
    go, begun, answers = threading.Event(), threading.Event(), []

    def slow(*args: Any) -> evidence.Evidence:
        begun.set()
        assert go.wait(30)
        return evidence.Evidence()

    monkeypatch.setattr(evidence, "_evidence", slow)
    path = f"/v1/jobs/{job}/evidence"
    asking = [threading.Thread(target=lambda: answers.append(server.client.get(path))) for _ in range(50)]
    for thread in asking:
        thread.start()
    assert begun.wait(30)
    until(lambda: len(answers) == 50 - MAX_WAITING)
    assert all(answer.headers["retry-after"] == "5" and problem(answer, 429, "evidence-full") for answer in answers)
    assert server.client.get(f"/v1/jobs/{job}").status_code == 200  # others are not held up
    assert rejected(server, "evidence_full") == before + 50 - MAX_WAITING
    go.set()
    for thread in asking:
        thread.join(30)
    assert [answer.status_code for answer in answers].count(200) == MAX_WAITING


def test_an_upload_can_be_removed(server):
    tone = bytes(encoded_audio(torch.sin(torch.arange(16000) / 9), 16000, ".wav", "tone"))
    upload = server.client.post("/v1/uploads", content=tone, headers={"Content-Type": "audio/wav"}).json()["id"]
    answer = server.client.delete(f"/v1/uploads/{upload}")
    assert answer.status_code == 204 and answer.content == b""
    problem(server.client.delete(f"/v1/uploads/{upload}"), 404)


def test_a_request_that_comes_again_is_made_once(server, held):
    body = {"prompt": TEXT, "steps": 1}
    answers: list[httpx.Response] = []

    def ask(key: str, path: str = "/v1/jobs", **body: Any) -> httpx.Response:
        return server.client.post(path, json=body, headers={"Idempotency-Key": key})

    asking = [threading.Thread(target=lambda: answers.append(ask('"one"', **body))) for _ in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(30)
    assert {answer.status_code for answer in answers} == {202}
    (path,) = {answer.headers["location"] for answer in answers}
    until(lambda: server.engine.state().running == 1)
    second = ask("two", **body)
    problem(ask("two", **body, priority=1), 422, "key-reused")
    problem(ask("two", "/v1/audio/generate", input=TEXT), 422, "key-reused")
    assert server.engine.state().queued == 1
    server.job()
    assert problem(ask("three", **body), 429) and ask("two", **body, seed=None).json()["id"] == second.json()["id"]
    held.open.set()
    server.done(path.rpartition("/")[2])
    again = ask("one", **body)
    assert again.status_code == 202 and again.headers["location"] == path and again.json()["state"] == "done"
    for bad in ("", "two words", "x" * 129, "caf\xe9"):
        answer = server.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": bad.encode("latin-1")})
        assert problem(answer, 422)["errors"][0]["field"] == "Idempotency-Key"
    problem(ask("four", "/v1/audio/generate", input=TEXT, stream=True), 422)


def test_a_client_that_goes_away_finds_its_work_again_by_its_key(server, held):
    asked = {"input": TEXT, "num_inference_steps": 2}
    body = json.dumps(asked).encode()
    head = (b"POST /v1/audio/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Idempotency-Key: "gone"\r\nContent-Length: %d\r\n\r\n' % len(body))
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + body)
        until(lambda: server.engine.state().running == 1)
        job = server.engine.jobs()[0].id
    until(lambda: not server.engine._listeners._of_ends.get(job))  # it is noticed that the client has gone
    held.open.set()
    assert server.engine.wait(job, timeout_s=30).state == "done"
    answer = server.client.post("/v1/audio/generate", json=asked, headers={"Idempotency-Key": "gone"})
    assert answer.status_code == 200 and answer.headers["x-musiccm-job"] == job
    assert answer.content == server.client.get(f"/v1/jobs/{job}/audio").content


def test_a_long_answer_comes_from_its_file(server, monkeypatch):
    asked = {"input": TEXT, "num_inference_steps": 1, "seed": 5}
    short = server.client.post("/v1/audio/generate", json=asked)
    monkeypatch.setattr(app, "_WHOLE_BYTES", 0)
    long = server.client.post("/v1/audio/generate", json=asked)
    assert short.status_code == long.status_code == 200 and short.content == long.content
    assert "accept-ranges" in long.headers and "accept-ranges" not in short.headers
    assert long.headers["x-musiccm-seed"] == short.headers["x-musiccm-seed"] == "5"


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.2", 200), ("127.1.2.3:80", 200), ("[::1]:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200),
    ("127.0.0.1.example", 421), ("10.0.0.1", 421), ("[::2]", 421), ("", 421),
])
def test_every_loopback_address_is_this_machine(server, host, status):
    assert server.client.get("/health", headers={"Host": host}).status_code == status


def test_a_full_queue_says_when_to_come_again(server, held):
    jobs, counted = [server.job()], rejected(server, "queue_full")
    until(lambda: server.engine.state().running == 1)
    jobs += [server.job(), server.job()]
    answer = server.client.post("/v1/jobs", json={"prompt": TEXT})
    problem(answer, 429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1
    problem(server.client.post("/v1/audio/generate", json={"input": TEXT}), 429, "queue-full")
    assert rejected(server, "queue_full") == counted + 2
    positions = [server.client.get(f"/v1/jobs/{job}").json()["position"] for job in jobs]
    assert positions == [None, 0, 1]
    problem(server.client.get(f"/v1/jobs/{jobs[2]}/audio"), 409, "not-done")
    assert server.client.delete(f"/v1/jobs/{jobs[2]}").json()["state"] == "cancelled"
    problem(server.client.get(f"/v1/jobs/{jobs[2]}/audio"), 409, "cancelled")
    before = held.begun
    server.client.delete(f"/v1/jobs/{jobs[0]}")
    server.client.delete(f"/v1/jobs/{jobs[1]}")
    held.open.set()
    until(lambda: server.engine.state().running == 0)
    assert held.begun == before  # none was made for what was cancelled


def test_a_client_that_goes_away_ends_its_work(server, held):
    body = json.dumps({"input": TEXT, "num_inference_steps": 20}).encode()
    head = (b"POST /v1/audio/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body))
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + body)
        until(lambda: server.engine.state().running == 1)
        job = server.engine.jobs()[0].id
    until(lambda: server.engine._live[job].cancelled.is_set() if job in server.engine._live else True)
    before = held.begun
    held.open.set()
    assert server.engine.wait(job).state == "cancelled" and held.begun == before


def test_one_stream_at_a_time_and_it_ends_with_its_client(server):
    asked = {"input": TEXT, "stream": True, "num_inference_steps": 1}
    with server.client.stream("POST", "/v1/audio/generate", json=asked) as answer:
        chunks = answer.iter_raw()
        assert next(chunks)[:4] == b"RIFF" and next(chunks)
        counted = rejected(server, "streams_full")
        problem(server.client.post("/v1/audio/generate", json=asked), 429, "streams-full")
        assert rejected(server, "streams_full") == counted + 1
        job = answer.headers["x-musiccm-job"]
        changed = server.client.post(f"/v1/jobs/{job}/prompt", json={"prompt": "drums"})
        assert changed.status_code == 200 and changed.json()["from"] > 0
    until(lambda: server.engine.state().streams == 0)
    assert server.engine.job(job).state == "cancelled"
    problem(server.client.post(f"/v1/jobs/{job}/prompt", json={"prompt": "drums"}), 404)


def test_a_client_that_takes_nothing_is_let_go(server):
    """Its stream is ended, so that another can begin."""
    body = json.dumps({"input": TEXT, "stream": True, "num_inference_steps": 1}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"POST /v1/audio/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: server.engine.state().streams == 1)
        until(lambda: server.engine.state().streams == 0, 30)


def test_slow_and_broken_bodies(server, caplog):
    head = b"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:  # it states a body and sends none
        client.sendall(head + b"Content-Length: 1000\r\n\r\nRIFF")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:  # a body without end
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            for _ in range(40):
                client.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        with contextlib.suppress(OSError):
            answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413") or answer == b""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:  # it goes away in the middle
        client.sendall(head + b"Content-Length: 1000\r\n\r\nRIFF")
    until(lambda: not list((server.engine.folder / "uploads").glob(".*")))
    assert "Traceback" not in caplog.text
    assert server.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_request_that_is_never_whole_is_let_go(server, monkeypatch, begun):
    monkeypatch.setattr(connection, "HEADER_S", 0.4)
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(begun)
        assert client.recv(4096) == b""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:  # one that is used stays
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'"streams":' not in answer:
                answer += (part := client.recv(4096))
                assert part, "it was let go"
            time.sleep(0.2)


@pytest.mark.parametrize("begun", [
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n",
])
def test_who_is_answered_and_goes_on_sending_is_let_go(server, monkeypatch, begun):
    monkeypatch.setattr(connection, "HEADER_S", 0.4)
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(begun)
        assert client.recv(4096).startswith(b"HTTP/1.1 ")
        client.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):  # until it is closed, or the socket's 20 s are over
                pass


def test_a_header_without_end_is_refused_at_a_bound(server):
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), 20) as client, contextlib.suppress(OSError):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        while sent < 50_000_000:
            sent += client.send(b"x" * 65536)
    assert sent < 5_000_000  # of which most lay in the sockets' buffers
    assert server.client.get("/health").status_code == 200


def test_who_wants_another_protocol_is_answered_in_this_one(server):
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert server.client.get("/health", headers=headers).json()["status"] == "ok"
    problem(server.client.get("/nowhere", headers=headers), 404)


def test_no_message_names_a_file_of_the_server(server):
    silent = encoded_audio(torch.zeros(16000), 16000, ".wav", "silent")
    tone = bytes(encoded_audio(torch.sin(torch.arange(16000) / 9), 16000, ".wav", "tone"))
    brief = bytes(encoded_audio(torch.sin(torch.arange(20.0)), 16000, ".wav", "brief"))
    for body, said in ((bytes(silent), "silent"), (tone[: len(tone) // 2], "truncated")):
        found = problem(server.client.post("/v1/uploads", content=body, headers={"Content-Type": "audio/wav"}), 422)
        assert f"the upload is {said}" in found["detail"] and str(server.engine.folder) not in found["detail"]
    upload = server.client.post("/v1/uploads", content=brief, headers={"Content-Type": "audio/wav"}).json()["id"]
    varied = {"prompt": TEXT, "steps": 1, "task": "vary", "source": upload}
    told = problem(server.client.post("/v1/jobs", json=varied), 422)["detail"]
    assert "the clip: too short" in told and str(server.engine.folder) not in told
    path = server.engine.folder / "silent.wav"
    path.write_bytes(silent)
    request = MusicRequest("student", ((0.0, TEXT),), "vary", steps=1, source="x").resolved()
    with pytest.raises(MusiccmError, match="^the clip: silent") as failed:  # of a file that changed meanwhile
        perform(server.pipeline, request, path)
    assert str(server.engine.folder) not in str(failed.value)
    measure = evidence._Measure(clap=object(), text=None, index=None, notes=["no index"])
    found = evidence._evidence(measure, str(path), ((0.0, TEXT),))
    assert found == evidence.Evidence(notes=["no index", "the result is silent: nothing can be said of it"])


def test_clips_that_take_long_to_read_keep_nobody_else_waiting(server, monkeypatch):
    reading, most, go = [], [], threading.Event()

    def slow(path: Path, owner: str) -> dict[str, Any]:
        reading.append(path)
        most.append(len(reading))
        assert go.wait(30)
        reading.remove(path)
        return {"id": "x", "seconds": 1.0, "bytes": 1}

    monkeypatch.setattr(server.engine, "add_upload", slow)
    answers: list[httpx.Response] = []
    clients = [threading.Thread(target=lambda: answers.append(server.client.post(
        "/v1/uploads", content=b"x", headers={"Content-Type": "audio/wav"}))) for _ in range(20)]
    for client in clients:
        client.start()
    until(lambda: len(reading) == 2 and len(answers) == 4)  # sixteen are on their way; others are told to come again
    assert server.client.get("/health").status_code == 200
    assert all(answer.headers["retry-after"] == "5" and problem(answer, 429, "uploads-full") for answer in answers)
    go.set()
    for client in clients:
        client.join(30)
    assert max(most) == 2 and [answer.status_code for answer in answers].count(201) == 16
    tone = bytes(encoded_audio(torch.sin(torch.arange(16000) / 9), 16000, ".wav", "tone"))
    monkeypatch.undo()
    assert server.client.post("/v1/uploads", content=tone, headers={"Content-Type": "audio/wav"}).status_code == 201


def test_who_comes_while_the_server_ends_is_told_to_come_again(tmp_path):
    server = Server(tmp_path)
    server.gate.open.clear()
    job = server.job()
    until(lambda: server.engine.state().running == 1)
    server.engine.drain(2)  # what a signal does
    server._server.ends_at_s = time.monotonic()
    with httpx.Client(base_url=server.client.base_url) as stranger:  # a new connection
        answer = stranger.post("/v1/jobs", json={"prompt": TEXT})
        assert answer.headers["retry-after"] == "5" and problem(answer, 503, "draining")
        assert stranger.get("/ready").status_code == 503
    server.gate.open.set()
    server._thread.join(20)
    assert not server._thread.is_alive() and server.engine.job(job).state == "done"
    server.close()


def test_who_waits_for_a_job_that_outlasts_the_end_is_told_so(tmp_path):
    server = Server(tmp_path)
    server.gate.open.clear()
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(
        server.client.post("/v1/audio/generate", json={"input": TEXT, "seed": 3})))
    waiting.start()
    until(lambda: server.engine.state().running == 1)
    server.engine.drain(0.2)
    waiting.join(20)
    assert "under its id" in problem(answers[0], 503, "draining")["detail"]
    server.gate.open.set()
    server.close()


def test_a_full_disk_is_said(server, monkeypatch):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        problem(server.client.post("/v1/audio/generate", json={"input": TEXT}), 507, "no-room")
    with monkeypatch.context() as patched:
        patched.setattr("anyio.open_file", full)
        problem(server.client.post("/v1/uploads", content=b"x", headers={"Content-Type": "audio/wav"}), 507)
    job = server.job()
    server.done(job)
    with monkeypatch.context() as patched:  # what is made is had all the same
        patched.setattr("musiccm.serving.results.write_bytes", full)
        answers = [server.client.get(f"/v1/jobs/{job}/audio?format={form}") for form in MEDIA_TYPES]
        problem(server.client.get(f"/v1/jobs/{job}/spectrogram.png"), 507, "no-room")
    for answer, (form, kind) in zip(answers, MEDIA_TYPES.items(), strict=True):
        assert answer.status_code == 200 and answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith("inline")
        if form != "ogg":  # whose streams have serial numbers drawn
            assert answer.content == server.client.get(f"/v1/jobs/{job}/audio?format={form}").content
    assert not list(server.engine.results.folder.glob(".*")) and not list(server.engine.results.folder.glob("*/.*"))
    assert server.client.post("/v1/audio/generate", json={"input": TEXT}).status_code == 200


def test_what_is_said_of_the_server(server):
    client = server.client
    server.done(server.job())
    found = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in found] == ["student"] and found[0]["default"]
    assert found[0]["content_hash"] == server.pipeline.bundle.content_hash()
    assert client.get("/ready").json() == {"status": "ready"}
    text = client.get("/metrics").text
    for line in ('musiccm_jobs_finished_total{state="done",task="generate"}', "musiccm_queued 0.0",
                 "musiccm_batch_calls_bucket", "musiccm_realtime_factor"):
        assert line in text
    described = client.get("/openapi.json").json()
    assert {"/v1/audio/generate", "/v1/jobs/{job}/events", "/v1/uploads"} <= described["paths"].keys()
    assert client.get("/docs").status_code == 404  # which would load scripts from elsewhere
    assert "access-control-allow-origin" not in client.get("/v1/models", headers={"Origin": "http://x"}).headers


def test_keys_open_and_jobs_are_their_own(server):
    import anyio

    async def ask() -> None:
        transport = httpx.ASGITransport(app=server.keyed)
        async with httpx.AsyncClient(transport=transport, base_url="http://music.example") as client:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEYS[0]},
                            {"Authorization": f"Basic {KEYS[0]}"}, {"Authorization": f"Bearer {KEYS[0]}x"}):
                for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/uploads"),
                                     ("GET", "/nowhere")):
                    answer = await client.request(method, path, headers=headers)
                    assert problem(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
            assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
            first, second = ({"Authorization": f"Bearer {key}"} for key in KEYS)
            answer = await client.post("/v1/jobs", json={"prompt": TEXT, "steps": 1}, headers=first)
            assert answer.status_code == 202
            path = answer.headers["location"]
            assert (await client.get(path, headers=first)).status_code == 200
            for method in ("GET", "DELETE"):
                problem(await client.request(method, path, headers=second), 404)
            problem(await client.get(f"{path}/events", headers=second), 404)
            assert (await client.get("/v1/jobs", headers=second)).json() == {"jobs": []}

    anyio.run(ask)


def test_keys_and_addresses(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# of the band\n{KEYS[0]}\n\n")
    keys = Keys.read(path)
    assert keys and keys.owner(f"bearer {KEYS[0]}") and keys.owner(f"Bearer {KEYS[1]}") is None
    assert not Keys([]) and KEYS[0] not in str(vars(keys))
    for content in ("", "short\n", "with spaces in between it\n"):
        path.write_text(content)
        with pytest.raises(MusiccmError):
            Keys.read(path)
    with pytest.raises(MusiccmError, match="keys"):
        Keys.read(tmp_path / "missing")
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.2", "music.example")] == [False] * 4
