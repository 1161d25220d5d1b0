"""Jobs whose networks compute in replicas: the pipeline's own to the bit, whichever replica answers or ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from gated import TEXTS, asked
from tiny_bundle import build_random_student
from tiny_melody import build_random_melody
from torch import Tensor

from musiccm.audio.io import write_audio
from musiccm.errors import MusiccmError
from musiccm.long_form import read_clip
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, EngineSettings, JobView, ServedModel, load_model
from musiccm.serving.elsewhere import load_elsewhere
from musiccm.serving.replica import MAX_ASKED, Ask, Replica, ReplicaLost
from musiccm.serving.replica import asked as ask_for
from musiccm.serving.wire import packed, unpacked
from tests import forked


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def pipeline(student: Path) -> Pipeline:
    return Pipeline.from_pretrained(student).accelerate()


def samples(engine: Engine, view: JobView) -> Tensor:
    assert view.state == "done", view.error
    read, _ = soundfile.read(engine.results.samples(view.id), dtype="float32", always_2d=True)
    return torch.from_numpy(read.T.copy())


def in_this_process(served: ServedModel) -> Ask:
    return Replica([served]).answer


# ---- a replica is a process


def answer_questions(pipe: Connection, model: str) -> None:
    torch.set_num_threads(1)
    replica = Replica([load_model(model)])
    while True:
        pipe.send_bytes(replica.answer(pipe.recv_bytes()))


class Processes:
    """Replicas as processes, each asked over a pipe; one that has ended is begun anew.

    Args:
        model: `NAME=FOLDER`.
        count: How many there are.
        kills: Whether the replica that is asked the question of this number is killed over it.
    """

    def __init__(self, model: str, count: int, kills: Callable[[int], bool]) -> None:
        self.model, self.kills, self.asked, self.pids = model, kills, 0, set[int]()
        self._free: queue.Queue[tuple[Any, Connection]] = queue.Queue()
        self._counting = threading.Lock()
        for _ in range(count):
            self._begin()

    def _begin(self) -> None:
        here, there = Pipe()
        process = forked.start(answer_questions, there, self.model)
        there.close()
        self.pids.add(process.pid)
        self._free.put((process, here))

    def ask(self, question: bytes) -> bytes:
        process, pipe = self._free.get(timeout=60)
        with self._counting:
            self.asked += 1
            killed = self.kills(self.asked)
        try:
            if killed:  # it has the question, and will never answer
                os.kill(process.pid, signal.SIGSTOP)
            pipe.send_bytes(question)
            if killed:
                os.kill(process.pid, signal.SIGKILL)
            answer = pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self._begin()
            raise ReplicaLost(f"process {process.pid}") from error
        self._free.put((process, pipe))
        return answer

    def close(self) -> None:
        while not self._free.empty():
            process, _ = self._free.get()
            process.kill()
            process.join(10)


@pytest.fixture
def begin(student: Path) -> Iterator[Callable[..., Processes]]:
    begun: list[Processes] = []

    def make(count: int, kills: Callable[[int], bool]) -> Processes:
        begun.append(Processes(f"student={student}", count, kills))
        return begun[-1]

    yield make
    for processes in begun:
        processes.close()


def test_replicas_are_killed_under_load_and_nothing_is_lost_or_made_twice(begin, student, pipeline, tmp_path):
    processes = begin(2, {20, 33, 71}.__contains__)
    served = load_elsewhere(f"student={student}", processes.ask)
    with Engine([served], tmp_path / "engine", EngineSettings(max_running=6, lanes=2)) as engine:
        jobs: dict[int, str] = {}
        threads = [threading.Thread(target=lambda first=first: [
            jobs.update({seed: engine.submit(asked(TEXTS[seed % 3], seed=seed, steps=2)).id})
            for seed in range(first, first + 6)]) for first in range(0, 24, 6)]
        stream = engine.stream(asked(seconds=2.0, steps=2, level="loudness"))
        for thread in threads:
            thread.start()
        chunks = list(stream)
        for thread in threads:
            thread.join()
        made = {seed: samples(engine, engine.wait(job)) for seed, job in jobs.items()}
    assert len(processes.pids) == 2 + 3  # three ended, three were begun in their place
    assert sorted(made) == list(range(24)) and len(set(jobs.values())) == 24
    for seed, found in made.items():
        assert torch.equal(found, pipeline([TEXTS[seed % 3]], 2, [seed], level="loudness")), seed
    # a stream outlasts its replica, too
    assert torch.equal(torch.cat(chunks), torch.cat(list(pipeline.stream(TEXTS[0], 2.0, 2, 3, level="loudness"))))
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:
        assert db.execute("SELECT COUNT(*) FROM jobs WHERE state = 'done' AND starts = 1").fetchone() == (25,)


def test_what_ends_every_replica_is_not_asked_for_ever(begin, student, tmp_path):
    processes = begin(1, lambda number: ending)
    ending = False
    served = load_elsewhere(f"student={student}", processes.ask)
    with Engine([served], tmp_path / "engine") as engine:
        ending, before = True, processes.asked
        view = engine.wait(engine.submit(asked(steps=1)).id)
        assert view.state == "failed" and "3 replicas ended" in view.error["message"]
        assert processes.asked - before == MAX_ASKED
        ending = False
        assert engine.wait(engine.submit(asked(steps=1)).id).state == "done"


# ---- what a replica computes, without processes


def test_every_task_is_the_pipelines_own(student, pipeline, tmp_path):
    path = tmp_path / "clip.wav"
    write_audio(path, pipeline(["slow organ chords"], 1, [9], level="peak")[0], 16000)
    compute = in_this_process(load_model(f"student={student}"))

    def ask(question: bytes) -> bytes:
        answer = unpacked(compute(question))
        return packed({**answer, "by": {**answer["by"], "device": "cuda:3"}})

    served = load_elsewhere(f"student={student}", ask)
    with Engine([served], tmp_path / "engine") as engine:
        upload = engine.new_upload()
        upload.write_bytes(path.read_bytes())
        source = engine.add_upload(upload)["id"]
        long = engine.submit(asked(seconds=1.7, steps=2, sampler={"name": "tcd", "gamma": 0.2}))
        edited = engine.submit(asked(task="inpaint", from_s=0.2, to_s=0.36, steps=2, source=source))
        found = [samples(engine, engine.wait(view.id)) for view in (long, edited)]
        sidecar = json.loads(engine.results.sidecar(long.id).read_text())
    assert sidecar["computed_by"]["device"] == "cuda:3"  # the replica's, and not the engine's
    own = pipeline(TEXTS[0], 2, [3], seconds=1.7, sampler={"name": "tcd", "gamma": 0.2}, level="loudness")
    assert torch.equal(found[0], own)
    own = pipeline.editor(2, 3).inpaint(read_clip(pipeline, path), TEXTS[0], 0.2, 0.36).waveform_CS
    assert torch.equal(found[1], (own * 32768).round().clamp(-32768, 32767) / 32768)


def test_a_model_that_plans_tokens(tmp_path):
    folder = build_random_melody(tmp_path / "bundles")
    alone = Pipeline.from_pretrained(folder).accelerate()
    here = load_model(f"student={folder}")
    compute, methods = in_this_process(here), []

    def ask(question: bytes) -> bytes:
        methods.append(unpacked(question)["method"])
        return compute(question)

    served = load_elsewhere(f"student={folder}", ask)
    with Engine([served], tmp_path / "engine") as engine:
        clip, piece = (engine.submit(asked(steps=2, level="none", seconds=seconds))
                       for seconds in (None, 1.5 * alone.duration_s))
        found = [samples(engine, engine.wait(view.id)) for view in (clip, piece)]
        assert "encode" not in methods
        varied = engine.submit(asked(task="vary", steps=2, source=clip.id))
        assert engine.wait(varied.id).state == "done" and "encode" in methods  # a clip is read by a replica too
    assert torch.equal(found[0], alone([TEXTS[0]], 2, [3]))
    torch.testing.assert_close(found[1], alone.compose(TEXTS[0], 1.5 * alone.duration_s, 2, 3)[None], atol=1e-6, rtol=0)
    assert here.model.conditioner.written > 0  # clips are planned by the replica


def test_a_call_that_a_replica_has_no_memory_for_is_halved(student, pipeline, tmp_path, monkeypatch):
    served = load_model(f"student={student}")
    rows, network = [], served.model.consistency

    def cramped(z: Tensor, *more: Any) -> Tensor:
        rows.append(len(z))
        if len(z) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return network(z, *more)

    monkeypatch.setattr(served.model, "consistency", cramped)
    elsewhere = load_elsewhere(f"student={student}", in_this_process(served))
    with Engine([elsewhere], tmp_path / "engine", EngineSettings(exact=False)) as engine:
        rows.clear()
        found = samples(engine, engine.wait(engine.submit(asked(seconds=1.6, steps=1)).id))
    assert rows == [4, 2, 2]
    torch.testing.assert_close(found, pipeline(TEXTS[0], 1, [3], seconds=1.6, level="loudness"), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("changed", "said"), [
    ({"model": "other"}, "asked for 'other'; give engine and replicas the same models"),
    ({"identity": "musiccm 0, weights 0"}, "and the engine musiccm 0, weights 0; give them the same musiccm"),
    ({"part": "codec", "method": "to"}, "computes no codec.to"),
    ({"part": "bundle", "method": "prompts"}, "computes no bundle.prompts"),
    ({"args": ("no list",)}, "expected a non-empty list of texts"),
])
def test_what_a_replica_refuses(pipeline, changed, said):
    served = ServedModel.of("student", pipeline)
    question = {"model": "student", "identity": served.identity, "part": "conditioner", "method": "prompts",
                "args": ([TEXTS[0]],), "options": {}}
    found, by = ask_for(in_this_process(served), question)
    assert torch.equal(found, pipeline.conditioner.prompts([TEXTS[0]])) and by["device"] == "cpu"
    with pytest.raises(MusiccmError, match=said):
        ask_for(in_this_process(served), {**question, **changed})


def test_what_fails_in_a_replica_is_told_to_the_job_without_its_words(student, tmp_path, monkeypatch):
    served = load_model(f"student={student}")
    elsewhere = load_elsewhere(f"student={student}", in_this_process(served))
    with Engine([elsewhere], tmp_path / "engine") as engine:
        monkeypatch.setattr(served.model.codec, "decode", lambda z: 1 / 0)
        view = engine.wait(engine.submit(asked(steps=1)).id)
    assert view.state == "failed" and view.error == {"kind": "internal", "message": "the server failed (RuntimeError)"}
