"""An engineer's first hour: an exported model in a service, by `import musiccm` alone.

What each call guarantees in every case, tests/test_pipeline_calls.py says; here they come as a service makes them.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_bundle import build_random_student

import musiccm

pytestmark = pytest.mark.e2e

REQUESTS = [("a calm piano melody", 3), ("slow organ chords", 7), ("a happy marimba tune", 3), ("a bass", 11)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> musiccm.Pipeline:
    """The exported folder, loaded once for everybody."""
    return musiccm.Pipeline.from_pretrained(build_random_student(tmp_path_factory.mktemp("models")))


def answer(service: musiccm.Pipeline, request: tuple[str, int]) -> torch.Tensor:
    prompt, seed = request
    return service(prompt, steps=2, seed=seed)[0]


def test_the_log_says_which_model_is_served(service: musiccm.Pipeline) -> None:
    assert repr(service).startswith("Pipeline(student: student, 4 steps, clips of 0.64 s at 16000 Hz")


def test_a_request_is_answered_alike_alone_in_a_batch_and_from_many_threads(service: musiccm.Pipeline) -> None:
    alone = [answer(service, request) for request in REQUESTS]
    prompts, seeds = zip(*REQUESTS, strict=True)
    batch = service(list(prompts), steps=2, seed=list(seeds), batch_size=1)
    assert all(map(torch.equal, batch, alone))
    gate = threading.Barrier(4)

    def at_once(request: tuple[str, int]) -> torch.Tensor:
        gate.wait(60)
        return answer(service, request)

    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(at_once, REQUESTS), alone))


def test_a_listener_goes_early_and_the_next_one_hears_all(service: musiccm.Pipeline) -> None:
    before = threading.active_count()
    with service.stream("slow organ chords", steps=1, seed=1) as stream:
        first = next(stream)
    assert list(stream) == [] and threading.active_count() == before
    again = service.stream("slow organ chords", steps=1, seed=1)
    assert torch.equal(next(again), first)
    again.close()
    whole = torch.cat(list(service.stream("slow organ chords", seconds=2.0, steps=1, seed=1)))
    assert len(whole) == 2 * service.sample_rate_hz and torch.isfinite(whole).all()


@pytest.mark.parametrize("bad", [
    {"prompt": None}, {"prompt": "  "}, {"steps": 0}, {"seed": "one"}, {"seed": [1, 2]}, {"level": "loud"},
    {"seconds": -1},
])
def test_whatever_a_client_sends_is_refused_by_one_exception(service: musiccm.Pipeline, bad: dict) -> None:
    arguments = {"prompt": "a bass", "steps": 1} | bad
    with pytest.raises(musiccm.MusiccmError):
        service(arguments.pop("prompt"), **arguments)
    assert torch.isfinite(answer(service, REQUESTS[0])).all(), "and the next request is served"
