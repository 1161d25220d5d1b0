"""How a pipeline is called: seeds one a prompt, from several threads, and what it refuses."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundle import build_random_student

from musiccm.audio.loudness import decibels, true_peak
from musiccm.errors import MusiccmError
from musiccm.pipeline import Pipeline
from musiccm.samplers import FrameNoise, SectionNoise, sample_seeds

TEXTS = ["a calm piano melody", "slow organ chords", "a happy marimba tune", "a bass"]
SEEDS = [5, 0, 7, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def student(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("seconds", [None, 1.1])
def test_a_clip_is_its_prompt_and_its_seed(student: Pipeline, seconds: float | None) -> None:
    """To the bit where each is computed alone; kernels that compute several at once round otherwise."""
    alone = torch.cat([student(text, 2, seed, seconds=seconds, batch_size=1)
                       for text, seed in zip(TEXTS, SEEDS, strict=True)])
    assert torch.equal(student(TEXTS, 2, SEEDS, seconds=seconds, batch_size=1), alone)
    torch.testing.assert_close(student(TEXTS, 2, SEEDS, seconds=seconds), alone, atol=1e-5, rtol=0)
    order = [3, 1, 0]
    again = student([TEXTS[i] for i in order], 2, tuple(SEEDS[i] for i in order), seconds=seconds, batch_size=1)
    assert torch.equal(again, alone[order])
    assert torch.equal(student([TEXTS[0]] * 2, 2, [7, 7], batch_size=1).diff(dim=0).abs().max(), torch.tensor(0.0))


def test_one_seed_for_all_is_what_it_was(student: Pipeline) -> None:
    """Noise by seed and place, so that one text given twice makes two clips."""
    both = student([TEXTS[0]] * 2, 2, 5)
    assert (both[0] - both[1]).abs().max() > 1e-3
    seeds = sample_seeds(5, 2)
    with torch.no_grad():
        z = student.latents(student.conditioner.prompts([TEXTS[0]] * 2), seeds, 2)
        assert torch.equal(both, student.codec.decode(z))


def test_the_packaged_student_on_a_cpu() -> None:
    packaged = Pipeline.from_pretrained("musiccm-tiny-student")
    together = packaged(TEXTS, 1, SEEDS)
    torch.testing.assert_close(together[3:], packaged(TEXTS[3], 1, SEEDS[3]), atol=2e-5, rtol=0)
    assert torch.equal(packaged(TEXTS[2:], 1, SEEDS[2:], batch_size=1)[1:], packaged(TEXTS[3], 1, SEEDS[3]))


def test_sections_of_a_piece_have_seeds_of_their_own(student: Pipeline) -> None:
    plan = [(0.0, TEXTS[0]), (3.0, TEXTS[1])]
    one, same, other = (student.compose(plan, 4.5, 2, seed) for seed in (5, [5, 5], [5, 6]))
    assert torch.equal(one, same)
    before = round((3.0 - 4 * student.duration_s) * student.sample_rate_hz)
    assert torch.equal(one[:before], other[:before]) and not torch.equal(one[-before:], other[-before:])
    streamed = torch.cat(list(student.stream(plan, 4.5, 2, [5, 6])))
    torch.testing.assert_close(streamed, other, atol=1e-4, rtol=0)


def test_noise_of_sections() -> None:
    shape = (2, 4, 3)
    sections, first, second = SectionNoise([1, 2], [0, 6], shape), FrameNoise(1, shape), FrameNoise(2, shape)
    for step in (-1, 0):
        whole = sections(step, 0, 20)
        assert torch.equal(whole, torch.cat([first(step, 0, 6), second(step, 6, 20)], dim=1))
        for begin, end in ((0, 3), (5, 7), (6, 9), (11, 20), (4, 4)):
            assert torch.equal(sections(step, begin, end), whole[:, begin:end])


def test_calls_from_several_threads_are_those_of_one(folder: Path) -> None:
    """Each call at once with others, on a pipeline that nobody has called yet: its first calls settle its layers."""
    calls: list[Callable[[Pipeline], torch.Tensor]] = [
        lambda p, n=n: p([f"{TEXTS[n % 4]} {n}", TEXTS[0]], 2, n) for n in range(4)]
    calls += [lambda p, n=n: p.compose(TEXTS[n], 1.3, 2, n) for n in range(2)]
    calls += [lambda p, n=n: torch.cat(list(p.stream(TEXTS[n], 1.3, 2, n, level="loudness"))) for n in range(2)]
    with pytest.MonkeyPatch.context() as narrow:
        narrow.setattr("musiccm.models.acceleration.networks.WIDE", 8)
        serial, shared = (Pipeline.from_pretrained(folder).accelerate() for _ in range(2))
    expected = [call(serial) for call in calls]
    together = threading.Barrier(4)

    def at_once(call: Callable[[Pipeline], torch.Tensor]) -> torch.Tensor:
        together.wait(60)
        return call(shared)

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(at_once, calls), expected, strict=True):
            assert torch.equal(found, wanted)


def test_the_memory_of_prompts_is_safe(student: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musiccm.models.conditioners.prompt_memory.REMEMBERED", 2)
    texts = [f"{word} {TEXTS[n]}" for n in range(4) for word in ("soft", "loud" * 5)]
    expected = {text: student.conditioner.text([text]) for text in texts}
    with ThreadPoolExecutor(8) as pool:
        for text, found in zip(texts * 8, pool.map(lambda text: student.conditioner.prompts([text]), texts * 8),
                               strict=True):
            assert torch.equal(found, expected[text])


def test_its_representation(student: Pipeline) -> None:
    assert repr(student) == ("Pipeline(student: student, 4 steps, clips of 0.64 s at 16000 Hz, fast decoder, on cpu)")


def test_a_level_is_asked_for(student: Pipeline) -> None:
    plain = student(TEXTS[:2], 1)
    assert torch.equal(plain, student(TEXTS[:2], 1, level="none"))
    for clip_S in student(TEXTS[:2], 1, level="peak"):
        assert decibels(true_peak(clip_S)) == pytest.approx(-1.0, abs=0.01)
    whole = student.compose(TEXTS[0], student.duration_s, 1, level="loudness")
    torch.testing.assert_close(student(TEXTS[:1], 1, level="loudness")[0], whole, rtol=0, atol=1e-5)
    assert (student(TEXTS[:1], 1, level="loudness")[0] - plain[0]).abs().max() > 1e-3


@pytest.mark.parametrize("ended", ["with", "close", "rest", "forgotten"])
def test_a_stream_lets_go_when_it_ends(student: Pipeline, ended: str) -> None:
    stream = student.stream(TEXTS[0], steps=1, level="loudness")
    front = weakref.ref(stream._front)
    next(stream)
    if ended == "with":
        with stream:
            next(stream)
    elif ended == "close":
        stream.close()
        stream.close()
    elif ended == "rest":
        rest = stream.rest()
        assert 0 < len(rest) <= 0.8 * 16000 and rest[-1].abs() < 1e-3 and len(stream.rest()) == 0
    else:
        stream = iter([])  # type: ignore[assignment]
    gc.collect()
    assert front() is None and list(stream) == []


#: What each refusal names; `s` is a student, `t` a teacher.
REFUSALS: dict[str, Callable[[Pipeline, Any], Any]] = {
    "prompts": lambda s, x: s(3), "prompt 1 of 1": lambda s, x: s([None]), "steps": lambda s, x: s("a", "2"),
    "seed: expected a whole number": lambda s, x: s("a", 1, 1.5), "seed: expected a whole": lambda s, x: s("a", 1, "1"),
    "seed: expected": lambda s, x: s("a", 1, True), "one for each of the 2": lambda s, x: s(["a", "b"], 1, [1]),
    "one for each prompt": lambda s, x: s("a", 1, ["1"]), "seed": lambda s, x: s.editor(1, None),
    "one for each of the 1": lambda s, x: s.compose("a", 2.0, 1, [1, 2]), "duration": lambda s, x: s("a", seconds="3"),
    "guidance_scale: expected a number": lambda s, x: s("a", guidance_scale="3"),
    "guidance_scale": lambda s, x: s("a", guidance_scale=3), "sampler": lambda s, x: s("a", sampler=3),
    "sampler: expected": lambda s, x: s("a", sampler={"nme": "lcm"}), "gamma": lambda s, x: s("a", sampler={
        "name": "lcm", "gamma": "x"}), "batch_size": lambda s, x: s("a", batch_size=0),
    "batch_size: expected": lambda s, x: s.compose("a", 2.0, batch_size="2"), "level": lambda s, x: s("a", level="x"),
    "level: expected": lambda s, x: s.stream("a", level=None), "overlap": lambda s, x: s.compose("a", 2.0, overlap="x"),
    "fusion": lambda s, x: s.compose("a", 2.0, fusion=["swap"]), "prompts: expected": lambda s, x: s.stream(3),
    "device": lambda s, x: s.to("nonsense"), "device: expected": lambda s, x: s.to(None),
    "bundle": lambda s, x: Pipeline.from_pretrained(None), "no bundle": lambda s, x: Pipeline.from_pretrained("gone"),
    "decoder": lambda s, x: Pipeline.from_pretrained(x, decoder="x"),
    "backend": lambda s, x: Pipeline.from_pretrained(x).accelerate(backend="nonsense"),
}


@pytest.mark.parametrize("says", REFUSALS)
def test_every_refusal_is_of_one_kind(student: Pipeline, folder: Path, says: str) -> None:
    with pytest.raises(MusiccmError, match=says):
        REFUSALS[says](student, folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "float32"])
def test_weights_of_other_types_are_refused(dtype):
    with pytest.raises(MusiccmError, match=r"dtype: expected torch.float32, found .*accelerate\(half=True\)"):
        Pipeline.from_pretrained("musiccm-tiny-student", dtype=dtype)
