"""Clips that are made by a recorded call, against those that the pipeline makes without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_bundle import build_random_student, make_unet
from tiny_tokens import build_token_bundle

from musiccm.bounds import Bucket
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline
from musiccm.serving.at_work import ModelAtWork
from musiccm.serving.device_queue import DeviceQueue
from musiccm.serving.jobs import Job
from musiccm.serving.request import MusicRequest

TEXTS = ["a calm piano melody", "slow organ chords", "a happy marimba tune with drums"]
SEEDS = [5, 0, 7]
LONG = "a calm piano melody over soft strings " * 6


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def folders(student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    teacher = Bundle.from_pretrained(student.with_name("teacher"))
    torch.manual_seed(11)
    direct = export_student(make_unet(frames=4), teacher, student.with_name("direct"),
                            StudentInfo("v_prediction", 3.0, guidance="direct"))
    return {"student": student, "teacher": student.with_name("teacher"), "direct": direct,
            "tokens": build_token_bundle(tmp_path_factory.mktemp("tokens") / "bundle")}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(("name", "sampler"), [
    ("student", None), ("student", "tcd"), ("direct", None), ("teacher", "heun"), ("tokens", None)])
def test_recorded_clips_are_the_usual_ones(
    folders: dict[str, Path], name: str, sampler: str | None, device: str
) -> None:
    pipeline = Pipeline.from_pretrained(folders[name]).to(device)
    expected = pipeline(TEXTS, 3, SEEDS, sampler=sampler)
    spent = pipeline.evaluations.denoising
    pipeline.warm_up([Bucket(2, 3), Bucket(3, 3)], sampler=sampler)
    assert pipeline.warmed == (device == "cuda")
    pipeline.warm_up([Bucket(2, 3), Bucket(3, 3)], sampler=sampler, record=True)
    assert pipeline.evaluations.denoising == spent, "a warm-up makes no music"
    found = pipeline(TEXTS, 3, SEEDS, sampler=sampler)
    assert pipeline.evaluations.denoising == 2 * spent
    again = pipeline(TEXTS[:1], 3, SEEDS[:1], sampler=sampler)  # by the call for two
    close(found, expected)
    close(again, expected[:1])
    assert not torch.equal(found[0], found[1])


def test_what_was_not_warmed_up_is_made_as_before_and_said_once(
    student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, pipeline = (Pipeline.from_pretrained(student) for _ in range(2))
    pipeline.warm_up(Bucket(2, 2), record=True)
    others: list[Callable[[Pipeline], torch.Tensor]] = [
        lambda p: p(TEXTS, 2, SEEDS), lambda p: p(TEXTS[0], 1, 3), lambda p: p([LONG], 2, 3),
        lambda p: p(TEXTS[0], 2, 3, sampler="ddim")]
    with caplog.at_level(logging.WARNING):
        for call in others:
            assert torch.equal(call(pipeline), call(plain))
    said = [record.getMessage() for record in caplog.records if "warmed up" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("3 clips of")
    assert said[0].endswith("warmed up are 2 steps of lcm, gamma 1: 2 clips, 32 tokens")


def test_prompts_of_another_length_are_warmed_up_by_such_a_text(
    student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline.from_pretrained(student)
    expected = pipeline([TEXTS[0], LONG], 1, SEEDS[:2])
    pipeline.warm_up(Bucket(2, 1), [LONG], record=True)
    close(pipeline([TEXTS[0], LONG], 1, SEEDS[:2]), expected)
    assert not [record for record in caplog.records if "warmed up" in record.getMessage()]


def test_recorded_calls_are_few_and_go_with_the_weights(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musiccm.warm_clips.MOST", 2)
    pipeline = Pipeline.from_pretrained(student)
    pipeline.warm_up([Bucket(1, 1), Bucket(1, 2), Bucket(1, 1)], record=True)
    with pytest.raises(MusiccmError, match="warm_up: expected at most 2 shapes"):
        pipeline.warm_up(Bucket(2, 1), record=True)
    assert not pipeline.to("cpu").warmed
    pipeline.warm_up(Bucket(1, 1), record=True)
    assert not pipeline.accelerate().warmed


def test_a_server_makes_a_clip_by_its_recorded_call(student: Path) -> None:
    plain, pipeline = Pipeline.from_pretrained(student), Pipeline.from_pretrained(student)
    pipeline.warm_up(Bucket(1, 2), record=True)
    job = Job("1", "", 0, MusicRequest("student", ((0.0, TEXTS[1]),), steps=2, seed=3, level="none"), 0, 0.0)
    queue = DeviceQueue(True, 8)
    try:
        work = ModelAtWork(pipeline, queue, job)
        options = {"guidance_scale": None, "sampler": None, "level": "none"}
        close(work.clip(TEXTS[1], 2, 3, **options), plain(TEXTS[1], 2, 3)[0])
        assert job.calls == 0 and job.device_s > 0, "as a whole, and not step by step"
        assert torch.equal(work.clip(TEXTS[1], 1, 3, **options), plain(TEXTS[1], 1, 3)[0])
        assert job.calls == 1
    finally:
        queue.close()


def test_without_a_gpu_a_warm_up_changes_no_bit(student: Path) -> None:
    plain, pipeline = (Pipeline.from_pretrained(student).accelerate() for _ in range(2))
    pipeline.warm_up([Bucket(2, 2), Bucket(2, 1, 1.5)])
    assert torch.equal(pipeline(TEXTS[:2], 2, SEEDS[:2]), plain(TEXTS[:2], 2, SEEDS[:2]))
    assert pipeline.evaluations == plain.evaluations


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="reads the allocator of CUDA")
def test_memory_does_not_grow(student: Path) -> None:
    pipeline = Pipeline.from_pretrained(student).to("cuda").accelerate(half=True).warm_up(Bucket(1, 4))
    for number in range(3):
        pipeline(f"slow organ chords {number}", 4, number)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(200):
        pipeline(f"slow organ chords {number}", 4, number)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.parametrize(("text", "bucket"), [
    ("8", Bucket(8)), ("1x4", Bucket(1, 4)), ("8x4x60", Bucket(8, 4, 60.0)), ("2x1x7.5", Bucket(2, 1, 7.5))])
def test_shapes_are_read(text: str, bucket: Bucket) -> None:
    assert Bucket.read(text) == bucket


@pytest.mark.parametrize("text", ["", "0", "8x", "x4", "8x0", "1x4x0", "1x4x7200", "1.5", "1x4x60x2", "-1"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(MusiccmError, match="warm_up: expected"):
        Bucket.read(text)
