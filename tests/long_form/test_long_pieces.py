"""Pieces and streams through a whole pipeline of random weights."""

from __future__ import annotations

import pytest
import torch
from tiny_bundle import build_random_bundle, make_unet

from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

PROMPT, OTHER = "a calm piano melody", "slow organ chords"
CLIP = 10240  # samples: 4 latent frames of 2560


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("bundles")
    teacher = Bundle.from_pretrained(build_random_bundle(folder / "teacher", frames=4, evaluators=False))
    torch.manual_seed(11)
    info = StudentInfo("v_prediction", 3.0, sampler={"name": "lcm", "gamma": 0.6})
    return Pipeline.from_pretrained(export_student(make_unet(frames=4), teacher, folder / "student", info))


def test_a_clips_own_length_is_that_clip(student: Pipeline) -> None:
    clip = student(PROMPT, seed=3)[0]
    assert torch.equal(student.compose(PROMPT, student.duration_s, seed=3), clip)
    assert torch.equal(student.compose(PROMPT, 0.3, seed=3), clip[:4800])
    assert torch.equal(student(PROMPT, seed=3, seconds=0.64)[0], clip)


@pytest.mark.parametrize("seconds", [0.641, 1.5, 3.21])
def test_a_stream_is_the_piece(student: Pipeline, seconds: float) -> None:
    plan = [(0.0, PROMPT), (seconds / 2, OTHER)] if seconds > 1 else PROMPT
    whole = student.compose(plan, seconds, seed=1)
    assert len(whole) == round(seconds * 16000) and torch.isfinite(whole).all() and whole.std() > 1e-3
    chunks = list(student.stream(plan, seconds, seed=1))
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=0, atol=1e-4)
    assert all(len(chunk) for chunk in chunks)


def test_several_prompts_of_any_length(student: Pipeline) -> None:
    both = student([PROMPT, OTHER], seed=1, seconds=1.5, batch_size=3)
    assert both.shape == (2, 24000)
    torch.testing.assert_close(both[0], student.compose(PROMPT, 1.5, seed=1), rtol=0, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_prompts_change_while_it_plays(student: Pipeline) -> None:
    stream = student.stream(PROMPT, 4.0, seed=2)
    first = next(stream)
    when = stream.set_prompt(OTHER)
    rest = list(stream)
    assert stream.prompts == [(0.0, PROMPT), (when, OTHER)] and when > len(first) / 16000
    whole = student.compose(stream.prompts, 4.0, seed=2)
    unchanged = student.compose(PROMPT, 4.0, seed=2)
    assert torch.equal(unchanged[: len(first)], whole[: len(first)])
    error, effect = ((torch.cat([first, *rest]) - whole).abs().max(), (unchanged - whole).abs().max())
    assert error < 1e-4 and error < 0.1 * effect
    with pytest.raises(MusiccmError, match="last window"):
        stream.set_prompt(PROMPT)


def test_before_it_plays_the_prompt_can_be_replaced(student: Pipeline) -> None:
    stream = student.stream(PROMPT, 1.0)
    assert stream.set_prompt(OTHER) == 0.0 and stream.prompts == [(0.0, OTHER)]
    torch.testing.assert_close(torch.cat(list(stream)), student.compose(OTHER, 1.0), rtol=0, atol=1e-4)


def test_a_stream_without_end_is_closed_by_its_listener(student: Pipeline) -> None:
    stream = student.stream(PROMPT, steps=2)
    heard = sum(len(next(stream)) for _ in range(6))
    assert stream.samples is None and heard > 3 * CLIP
    stream.close()
    assert list(stream) == []


def test_teachers_make_long_music_too(student: Pipeline) -> None:
    teacher = Pipeline(student.bundle)
    teacher.is_student = False
    whole = teacher.compose(PROMPT, 1.5, steps=3)
    torch.testing.assert_close(torch.cat(list(teacher.stream(PROMPT, 1.5, steps=3))), whole, rtol=0, atol=1e-4)
    one = teacher.compose(PROMPT, 0.64, steps=3)
    torch.testing.assert_close(one, teacher(PROMPT, steps=3)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), 1e300, 10**400, 3601, True, "6"])
def test_impossible_lengths(student: Pipeline, seconds: object) -> None:
    with pytest.raises(MusiccmError, match="duration"):
        student(PROMPT, seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(MusiccmError, match="duration"):
        student.compose(PROMPT, seconds)  # type: ignore[arg-type]
    if seconds != 3601:
        with pytest.raises(MusiccmError, match="duration.*None streams without end"):
            student.stream(PROMPT, seconds)  # type: ignore[arg-type]


def test_unheard_prompts_and_guidance(student: Pipeline) -> None:
    with pytest.raises(MusiccmError, match="would not be used"):
        student.compose([(0, PROMPT), (1.9, OTHER)], 2.0)
    with pytest.raises(MusiccmError, match="would not be used"):
        student.stream([(0, PROMPT), (1.9, OTHER)], 2.0)
    for last_s in (1.0, 1.3, 60.0):  # in an endless stream the last text has its time, one in between may not
        student.stream([(0, PROMPT), (last_s, OTHER)])
        with pytest.raises(MusiccmError, match="would not be used"):
            student.stream([(0, PROMPT), (last_s, OTHER), (last_s + 0.01, PROMPT), (last_s + 0.02, OTHER)])
    with pytest.raises(MusiccmError, match="guidance"):
        student.stream(PROMPT, guidance_scale=2.0)
