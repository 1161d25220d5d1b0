"""Pieces, streams and edits through a whole pipeline of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from tiny_bundle import build_random_bundle, make_unet

from musiccm.audio.io import BadAudio
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.long_form import encode_piece, read_clip, seam_metrics
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


@pytest.fixture
def tune(tmp_path: Path) -> Path:
    """1.6 s in stereo at 22,050 Hz."""
    time = torch.arange(35280) / 22050
    left = torch.sin(2 * torch.pi * 440 * time) * (-3 * (time % 0.4)).exp()
    soundfile.write(tmp_path / "tune.ogg", torch.stack([left, 0.3 * left.roll(99)], dim=1).numpy(), 22050)
    return tmp_path / "tune.ogg"


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


def test_continuing(student: Pipeline, tune: Path) -> None:
    clip = read_clip(student, tune)
    assert clip.samples == 25600
    edited = student.editor(2, 5).extend(clip, PROMPT, 2.4)
    assert len(edited.waveform_S) == 38400 and edited.seams_s == [1.6]
    mean, _ = student.codec.encode(clip.mel_MN[None, :64])
    z = student.codec.normalise(mean)[0]
    assert edited.kept_T.tolist() == [True] * 10 + [False] * 5
    assert torch.equal(edited.z_CTF[:, :3], z[:, :3])  # the first window's own part, bit by bit
    again = student.editor(2, 6).extend(clip, PROMPT, 2.4)
    assert torch.equal(again.z_CTF[:, :10], edited.z_CTF[:, :10])
    assert not torch.allclose(again.z_CTF[:, 10:], edited.z_CTF[:, 10:])
    assert len(student.editor(1).extend(clip, PROMPT).waveform_S) == 25600 + CLIP
    with pytest.raises(MusiccmError, match="lasts 1.60 s already"):
        student.editor(1).extend(clip, PROMPT, 1.6)


def test_inpainting(student: Pipeline, tune: Path) -> None:
    clip = read_clip(student, tune)
    edited = student.editor(2).inpaint(clip, PROMPT, 0.5, 0.9)
    assert edited.kept_T.tolist() == [True] * 3 + [False] * 3 + [True] * 4
    assert len(edited.waveform_S) == 25600 and edited.seams_s == pytest.approx([0.48, 0.96])
    other = student.editor(2, 1).inpaint(clip, OTHER, 0.5, 0.9)
    assert torch.equal(edited.z_CTF[:, edited.kept_T], other.z_CTF[:, edited.kept_T])
    assert not torch.allclose(edited.z_CTF[:, 3:6], other.z_CTF[:, 3:6])
    for start, end in ((0.9, 0.5), (-1, 1), (0, 1.7), (0.2, 0.2), (float("nan"), 1)):
        with pytest.raises(MusiccmError, match="range"):
            student.editor(1).inpaint(clip, PROMPT, start, end)
    with pytest.raises(MusiccmError, match="nothing"):
        student.editor(1).inpaint(clip, PROMPT, 0.0, 1.6)


def test_varying(student: Pipeline, tune: Path) -> None:
    clip = read_clip(student, tune)
    slight, strong = (student.editor(2).vary(clip, PROMPT, strength) for strength in (0.02, 1.0))
    assert len(slight.waveform_S) == len(strong.waveform_S) == 25600 and not slight.kept_T.any()
    original = encode_piece(student.codec, clip.mel_MN, 4)
    assert (slight.z_CTF - original).square().mean() < 0.2 * (strong.z_CTF - original).square().mean()
    for strength in (0.0, 1.1, float("nan")):
        with pytest.raises(MusiccmError, match="strength"):
            student.editor(2).vary(clip, PROMPT, strength)


def test_clips_shorter_than_a_window(student: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", torch.sin(torch.arange(16000) / 9).numpy()[:7000] * 0.4, 16000)
    clip = read_clip(student, tmp_path / "short.wav")
    assert len(student.editor(1).vary(clip, PROMPT, 0.5).waveform_S) == 7000
    mended = student.editor(1).inpaint(clip, PROMPT, 0.2, 0.3)
    assert len(mended.waveform_S) == 7000 and mended.kept_T.tolist() == [True, False, False, False]


def test_unusable_clips(student: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", torch.zeros(16000).numpy(), 16000)
    soundfile.write(tmp_path / "brief.wav", torch.rand(900).numpy(), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (tmp_path / "empty.flac").write_bytes(b"")
    for name, reason in (("silent.wav", "silent"), ("brief.wav", "too_short"), ("broken.wav", "unreadable"),
                         ("empty.flac", "empty"), ("none.mp3", "missing")):
        with pytest.raises(BadAudio) as caught:
            read_clip(student, tmp_path / name)
        assert caught.value.reason == reason and name in str(caught.value)


def test_a_seam_that_can_be_heard_is_seen(student: Pipeline) -> None:
    time = torch.arange(32000) / 16000
    smooth = 0.3 * torch.sin(2 * torch.pi * 300 * time)
    broken = torch.where(time < 1.0, smooth, 0.03 * torch.sin(2 * torch.pi * 1000 * time))
    mel = student.bundle.mel
    even, jump = seam_metrics(smooth, [1.0], mel), seam_metrics(broken, [1.0], mel)
    assert even is not None and jump is not None
    assert even.level_jump_db < 0.1 and even.flux < 1.5 and even.n == 1
    assert jump.level_jump_db > 6 and jump.flux > 10 * max(jump.usual_flux, 0.1) and jump.usual_level_jump_db < 0.1
    assert seam_metrics(smooth, [], mel) is None and seam_metrics(smooth[:1000], [0.03], mel) is None
