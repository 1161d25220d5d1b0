"""Jobs that are made elsewhere: the same sound, and another replica where one has gone."""

from __future__ import annotations

import threading

import pytest
import soundfile
import torch
from gated import TEXTS, asked

from musiccm.errors import MusiccmError
from musiccm.serving import Engine, EngineSettings
from musiccm.serving.replica import MAX_TRIES, Replica, ReplicaGone, elsewhere


@pytest.fixture(scope="module")
def replica(served):
    replica = Replica([served])
    yield replica
    replica.close()


def test_two_replicas_of_which_one_ends_lose_nothing(replica, served, pipeline, tmp_path):
    ended, turns, lock, answered = threading.Event(), iter(range(1000)), threading.Lock(), []

    def ask(wire):
        with lock:
            first = next(turns) % 2 == 0
        if first and ended.is_set():
            raise ReplicaGone("first")
        answer = replica.make(wire)
        answered.append(first)
        if first and len(answered) >= 4:
            ended.set()  # it ends in the middle of this one
            raise ReplicaGone("first")
        return answer

    with Engine([served], tmp_path, EngineSettings(max_running=2), elsewhere=elsewhere(ask)) as engine:
        jobs = [engine.submit(asked(TEXTS[seed % 3], seed=seed, steps=1, level="none")).id for seed in range(12)]
        views = [engine.wait(job) for job in jobs]
        made = [torch.from_numpy(soundfile.read(engine.results.samples(job), dtype="float32")[0]) for job in jobs]
    assert ended.is_set() and [view.state for view in views] == ["done"] * 12
    assert all(view.calls == 1 and view.result["device_s"] > 0 for view in views)
    for seed, found in enumerate(made):
        assert torch.equal(found, pipeline([TEXTS[seed % 3]], 1, [seed], level="none")[0])


def test_edits_and_refusals_travel(replica, served, tmp_path):
    with Engine([served], tmp_path, elsewhere=elsewhere(replica.make)) as engine:
        source = engine.submit(asked(steps=1)).id
        engine.wait(source)
        longer = engine.wait(engine.submit(asked(task="continue", source=source, steps=1, seconds=0.9)).id)
        assert longer.state == "done" and "is kept to the sample" in longer.result["says"]
        short = engine.wait(engine.submit(asked(task="continue", source=source, steps=1, seconds=0.1)).id)
        assert short.error["kind"] == "failed" and short.error["message"].startswith("seconds: the clip lasts")


def test_replicas_that_all_end_fail_the_job(served, tmp_path):
    tries = []

    def gone(wire):
        tries.append(wire)
        raise ReplicaGone("out of memory")

    with Engine([served], tmp_path, elsewhere=elsewhere(gone)) as engine:
        view = engine.wait(engine.submit(asked(steps=1)).id)
    assert len(tries) == MAX_TRIES and "out of memory" in view.error["message"] and view.state == "failed"


def test_a_request_that_is_none_is_refused(replica):
    with pytest.raises(MusiccmError, match="the request"):
        replica.make({"request": {"model": "student"}, "source": None})
