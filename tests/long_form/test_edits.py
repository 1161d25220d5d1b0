"""Edits through a whole pipeline of random weights: what is kept, what is new, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_bundle import build_random_bundle, make_unet

from musiccm.audio.io import BadAudio
from musiccm.audio.mel import LogMel
from musiccm.audio.original import Original
from musiccm.data.demo.tracks import make_track
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.long_form import Edited, SourceClip, encode_piece, read_clip, seam_metrics
from musiccm.long_form.seams import LEAST_DB, REAL_DB
from musiccm.long_form.splice import STEP_DB
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

PROMPT, OTHER = "a calm piano melody", "slow organ chords"
WINDOW = 10240  # samples: 4 latent frames of 2560


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("bundles")
    teacher = Bundle.from_pretrained(build_random_bundle(folder / "teacher", frames=4, evaluators=False, decoder=True))
    torch.manual_seed(11)
    info = StudentInfo("v_prediction", 3.0, sampler={"name": "lcm", "gamma": 0.6})
    return Pipeline.from_pretrained(export_student(make_unet(frames=4), teacher, folder / "student", info))


def tune(seconds: float, rate_hz: int, channels: int = 1, level: float = 0.3) -> np.ndarray:
    """Notes that fade, and a little noise; the channels differ."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    notes = level * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * (time % 0.4))
    noise = np.random.default_rng(0).normal(0, 0.02 * level, (len(time), channels))
    return notes[:, None] * np.linspace(1.0, 0.3, channels) + noise


def clip_of(student: Pipeline, samples: np.ndarray, rate_hz: int) -> SourceClip:
    return SourceClip.of(student, Original(torch.from_numpy(samples.T).float(), rate_hz, "FLOAT"))


def stretch(edited: Edited, first: int, last: int | None) -> torch.Tensor:
    return edited.waveform_CS[:, first:last]


@pytest.mark.parametrize(("name", "subtype", "channels", "rate_hz", "dtype"), [
    ("mono.wav", "PCM_16", 1, 16000, "int16"), ("stereo.wav", "PCM_16", 2, 44100, "int16"),
    ("fine.flac", "PCM_24", 2, 48000, "int32"), ("fine.wav", "PCM_24", 1, 44100, "int32"),
    ("loud.wav", "FLOAT", 2, 44100, "float32"), ("odd.wav", "PCM_32", 6, 11127, "int32"),
])
def test_kept_samples_are_the_clips_in_the_file_that_is_written(
    student: Pipeline, tmp_path: Path, name: str, subtype: str, channels: int, rate_hz: int, dtype: str
) -> None:
    path, out = tmp_path / name, tmp_path / f"new{Path(name).suffix}"
    soundfile.write(path, tune(1.6, rate_hz, channels, 1.2 if name == "loud.wav" else 0.3), rate_hz, subtype=subtype)
    given = soundfile.read(path, dtype=dtype, always_2d=True)[0]
    clip = read_clip(student, path)
    fade = round(0.1 * rate_hz)

    edited = student.editor(1).extend(clip, PROMPT, 2.4)
    edited.write(out)
    written = soundfile.read(out, dtype=dtype, always_2d=True)[0]
    info = soundfile.info(out)
    assert (info.subtype, info.samplerate, info.channels, info.frames) == (subtype, rate_hz, channels,
                                                                          round(2.4 * rate_hz))
    assert edited.kept == [(0, len(given) - fade)] and edited.fades == [(len(given) - fade, len(given))]
    assert edited.seams_s == pytest.approx([1.6], abs=1e-4) and edited.holds(out.suffix)
    np.testing.assert_array_equal(written[: len(given) - fade], given[: len(given) - fade])
    assert not np.array_equal(written[len(given) - fade : len(given)], given[-fade:])

    edited = student.editor(1).inpaint(clip, PROMPT, 0.5, 0.9)
    edited.write(out)
    written = soundfile.read(out, dtype=dtype, always_2d=True)[0]
    start, back = round(0.5 * rate_hz), round(0.98 * rate_hz)  # 0.4 s are made of three latent frames
    assert len(written) == len(given) and edited.kept == [(0, start - fade), (back + fade, len(given))]
    for first, last in edited.kept:
        np.testing.assert_array_equal(written[first:last], given[first:last])
    assert not np.array_equal(written[start:back], given[start:back])


def test_continuing(student: Pipeline) -> None:
    clip = clip_of(student, tune(1.6, 22050, 2), 22050)
    edited = student.editor(2, 5).extend(clip, PROMPT, 2.4)
    assert edited.waveform_CS.shape == (2, 52920) and torch.isfinite(edited.waveform_CS).all()
    assert edited.kept_T.tolist() == [True] * 4 + [False] * 5, "the model looks at a window of the clip"
    mean, _ = student.codec.encode(LogMel(student.codec.mel)(clip.waveform_S[-WINDOW:])[None])
    assert torch.equal(edited.z_CTF[:, :4], student.codec.normalise(mean)[0]), "whose latents are held, bit by bit"
    again = student.editor(2, 6).extend(clip, PROMPT, 2.4)
    assert torch.equal(stretch(again, *edited.kept[0]), stretch(edited, *edited.kept[0]))
    assert not torch.allclose(stretch(again, 35280, None), stretch(edited, 35280, None), atol=1e-3)
    assert student.editor(1).extend(clip, PROMPT).waveform_CS.shape == (2, 35280 + round(22050 * WINDOW / 16000))
    for seconds in (1.6, 0.5):
        with pytest.raises(MusiccmError, match="lasts 1.60 s already"):
            student.editor(1).extend(clip, PROMPT, seconds)


def test_a_clip_that_fills_no_whole_frame_is_kept_to_its_end(student: Pipeline) -> None:
    """Latent frames lie on the clip's end, wherever that is; what the first one lacks is mirrored."""
    clip = clip_of(student, tune(0.55, 16000), 16000)
    edited = student.editor(1).extend(clip, PROMPT, 1.0)
    assert edited.kept == [(0, 8800 - 1600)] and edited.kept_T.tolist()[:4] == [True] * 4


def test_mending(student: Pipeline) -> None:
    clip = clip_of(student, tune(1.6, 16000, 2), 16000)
    edited = student.editor(2).inpaint(clip, PROMPT, 0.5, 0.9)
    assert edited.kept_T.tolist() == [True] * 4 + [False] * 3 + [True] * 4
    assert edited.seams_s == [0.5, 0.98]
    other = student.editor(2, 1).inpaint(clip, OTHER, 0.5, 0.9)
    assert torch.equal(edited.z_CTF[:, edited.kept_T], other.z_CTF[:, edited.kept_T])
    assert not torch.allclose(stretch(edited, 8000, 15680), stretch(other, 8000, 15680), atol=1e-3)
    at_the_end = student.editor(1).inpaint(clip, PROMPT, 1.0, 1.55)
    assert at_the_end.kept == [(0, 14400)] and at_the_end.seams_s == [1.0] and at_the_end.seconds == 1.6
    at_the_start = student.editor(1).inpaint(clip, PROMPT, 0.0, 0.32)
    assert at_the_start.kept == [(5120 + 1600, 25600)] and at_the_start.seams_s == [0.32]


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.5), (-1, 1), (0, 1.7), (0.2, 0.2), (float("nan"), 1)])
def test_ranges_that_are_none(student: Pipeline, start: float, end: float) -> None:
    clip = clip_of(student, tune(1.6, 22050), 22050)
    with pytest.raises(MusiccmError, match="range: expected 0 <= from < to <= 1.60 s"):
        student.editor(1).inpaint(clip, PROMPT, start, end)


def test_a_range_that_leaves_nothing(student: Pipeline) -> None:
    clip = clip_of(student, tune(1.6, 22050), 22050)
    with pytest.raises(MusiccmError, match="range: .*leaves nothing of the clip"):
        student.editor(1).inpaint(clip, PROMPT, 0.0, 1.6)


def test_texts_are_planned_in_the_clips_time(student: Pipeline) -> None:
    """However far into it the model's view begins: the text of the last window alone is used."""
    clip = clip_of(student, tune(3.2, 16000), 16000)
    plan = [(0.0, PROMPT), (3.6, OTHER)]  # windows of which the middle is at 3.2 and 3.52, and at 3.84 and 4.16
    both, first = (student.editor(1).extend(clip, texts, 4.48) for texts in (plan, PROMPT))
    assert not torch.allclose(stretch(both, 60000, None), stretch(first, 60000, None), atol=1e-4)
    with pytest.raises(MusiccmError, match="would not be used.*3.2, 3.52, 3.84, 4.16 s"):
        student.editor(1).extend(clip, [(0.0, PROMPT), (4.3, OTHER)], 4.48)


def test_texts_that_begin_where_the_music_has_ended_are_refused(student: Pipeline) -> None:
    clip, editor = clip_of(student, tune(1.6, 16000), 16000), student.editor(1)
    texts, said = [(0.0, PROMPT), (2.0, OTHER)], "would not be used: the music ends at"
    for edit, ends in ((lambda: editor.extend(clip, texts, 1.9), "1.9 s"),
                       (lambda: editor.inpaint(clip, texts, 0.5, 0.9), "1.6 s"),
                       (lambda: editor.vary(clip, texts, 0.5), "1.6 s"),
                       (lambda: student.compose(texts, 2.0, 1), "2 s"), (lambda: student.stream(texts, 2.0), "2 s")):
        with pytest.raises(MusiccmError, match=f"{said} {ends}"):
            edit()


def test_new_sound_follows_the_clips_level(student: Pipeline) -> None:
    """A clip that is 20 dB quieter is continued, mended and varied 20 dB quieter."""
    loud, quiet = (clip_of(student, tune(1.6, 44100, 2, level), 44100) for level in (0.2, 0.02))
    for edit in (lambda clip: student.editor(1).extend(clip, PROMPT, 2.4),
                 lambda clip: student.editor(1).inpaint(clip, PROMPT, 0.5, 0.9),
                 lambda clip: student.editor(1).vary(clip, PROMPT, 0.5)):
        first, second = edit(loud), edit(quiet)
        assert first.limited_db == second.limited_db == 0
        torch.testing.assert_close(second.waveform_CS * 10, first.waveform_CS, rtol=0, atol=2e-4)
        assert second.gain_db == pytest.approx([gain for gain in first.gain_db], abs=0.05)


def test_new_sound_is_as_loud_as_the_clip_beside_it_in_every_channel(student: Pipeline) -> None:
    """A second on either side differ by no more than music does, and the channels as they do in the clip."""
    samples = tune(3.2, 16000, 2, 0.1)
    samples[:, 1] *= 0.05
    samples[32000:] *= 0.2
    clip = clip_of(student, samples, 16000)

    def level(sound_S: torch.Tensor) -> float:
        return 20 * math.log10(float(sound_S.double().std(unbiased=False)))

    longer = student.editor(1).extend(clip, PROMPT, 4.5)
    mended = student.editor(1).inpaint(clip, PROMPT, 1.2, 2.16)
    own = clip.original.waveform_CS
    for edited, there, new in ((longer, slice(48000, 49600), slice(51200, 67200)),
                               (longer, slice(33600, 49600), slice(51200, 67200)),
                               (mended, slice(1600, 17600), slice(19200, 25000))):
        assert edited.limited_db == 0
        balance = [level(sound[0]) - level(sound[1]) for sound in (own[:, there], edited.waveform_CS[:, new])]
        assert balance[0] == pytest.approx(balance[1], abs=1)
    before, behind = own[:, 33600:49600], longer.waveform_CS[:, 51200:67200]
    assert abs(level(behind[0]) - level(before[0])) <= STEP_DB + 0.1, "not of the clip's beginning, 14 dB louder"
    for place, there, new in (("before", slice(1600, 17600), slice(19200, 20000)),
                              ("behind", slice(36160, 51200), slice(33760, 34560))):
        step_db = level(mended.waveform_CS[0, new]) - level(own[0, there])
        assert abs(step_db) < 8, f"{place} the range, of which the sides differ by 14 dB"


def test_a_clip_that_has_faded_out_goes_on_at_its_own_level(student: Pipeline) -> None:
    """What the codec makes of the end of a fade tells nothing; the gain is that of the clip's mean of channels."""
    samples = tune(4.0, 16000)
    samples[20000:] *= 0.002
    edited = student.editor(1).extend(clip_of(student, samples, 16000), PROMPT, 4.5)
    assert edited.gain_db == pytest.approx([0.0], abs=0.01)
    assert abs(student.editor(1).extend(clip_of(student, samples[:20000], 16000), PROMPT).gain_db[0]) > 0.5


def test_varying(student: Pipeline) -> None:
    clip = clip_of(student, tune(1.6, 22050, 2), 22050)
    slight, strong = (student.editor(2).vary(clip, PROMPT, strength) for strength in (0.02, 1.0))
    for edited in (slight, strong):
        assert edited.waveform_CS.shape == (2, 35280) and edited.kept == edited.fades == edited.seams_s == []
        assert not edited.kept_T.any() and "no sample of the clip is kept" in edited.says()
        levels = edited.waveform_CS.std(1) / clip.original.waveform_CS.std(1)
        assert levels.tolist() == pytest.approx([1, 1], abs=0.01), "as loud as the clip"
    original = encode_piece(student.codec, LogMel(student.codec.mel)(clip.waveform_S), 4)
    assert (slight.z_CTF - original).square().mean() < 0.2 * (strong.z_CTF - original).square().mean()
    for strength in (0.0, 1.1, float("nan")):
        with pytest.raises(MusiccmError, match="strength"):
            student.editor(2).vary(clip, PROMPT, strength)


def test_clips_shorter_than_a_window(student: Pipeline) -> None:
    clip = clip_of(student, tune(0.4375, 16000), 16000)
    assert student.editor(1).vary(clip, PROMPT, 0.5).waveform_CS.shape == (1, 7000)
    mended = student.editor(1).inpaint(clip, PROMPT, 0.2, 0.3)
    assert mended.waveform_CS.shape == (1, 7000) and mended.kept_T.tolist() == [True, True, False, False]
    assert mended.kept == [(0, 1600)], "what is left behind the range is shorter than a fade"


def test_unusable_clips(student: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", torch.zeros(16000).numpy(), 16000)
    soundfile.write(tmp_path / "brief.wav", torch.rand(900).numpy(), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (tmp_path / "empty.flac").write_bytes(b"")
    with pytest.raises(MusiccmError, match="expected the path of a file, found None"):
        read_clip(student, None)  # type: ignore[arg-type]
    for name, reason in (("silent.wav", "silent"), ("brief.wav", "too_short"), ("broken.wav", "unreadable"),
                         ("empty.flac", "empty"), ("none.mp3", "missing")):
        with pytest.raises(BadAudio) as caught:
            read_clip(student, tmp_path / name)
        assert caught.value.reason == reason and name in str(caught.value)


def test_what_is_said_is_what_is_kept(student: Pipeline) -> None:
    clip = clip_of(student, tune(1.6, 16000), 16000)
    longer = student.editor(1).extend(clip, PROMPT, 2.4)
    assert longer.says() == ("what lies from 0.00 to 1.50 s is kept to the sample, what lies from 1.60 to 2.40 s is "
                             "new, and over the 0.1 s between, one fades into the other")
    mended = student.editor(1).inpaint(clip, PROMPT, 0.5, 0.9)
    assert "from 0.00 to 0.40 s and from 1.08 to 1.60 s is kept to the sample" in mended.says()
    assert "from 0.50 to 0.98 s is new" in mended.says()
    for suffix in (".flac", ".mp3"):  # of float samples
        assert not mended.holds(suffix) and "kept" not in mended.says(suffix)
    assert "full scale" not in mended.says(".flac")
    loud = clip_of(student, 6 * tune(1.6, 16000), 16000)
    beyond = int((loud.original.waveform_CS[:, : round(1.5 * 16000)].abs() > 1).any(0).sum())
    over = student.editor(1).extend(loud, PROMPT, 2.4)
    assert beyond and f"({beyond:,} of its samples are beyond full scale and are clipped" in over.says(".flac")
    assert "full scale" not in over.says(".wav")


def test_a_seam_that_can_be_heard_is_seen() -> None:
    """A tone of vibrato, whose levels and spectra hardly change, against another tone; and in a stereo file."""
    for rate_hz in (16000, 44100):
        time = torch.arange(10 * rate_hz) / rate_hz
        smooth = 0.3 * torch.sin(2 * torch.pi * 300 * time + 3 * torch.sin(20 * time))
        broken = torch.where(time < 6.0, smooth, 0.03 * torch.sin(2 * torch.pi * 700 * time))
        fade = (round(5.9 * rate_hz), 6 * rate_hz)
        kept = [(0, fade[0])]
        (even,), (jump,) = (seam_metrics(sound[None].expand(2, -1), rate_hz, [fade], kept)
                            for sound in (smooth, broken))
        assert even.own and jump.own and even.at_s == pytest.approx(5.95)
        assert even.level_jump_db < 0.5 and even.change_db < 2 and not even.audible
        assert jump.level_jump_db == pytest.approx(20, abs=1) and jump.change_db > 3 and jump.audible
        assert (jump.level_limit_db, jump.change_limit_db) == LEAST_DB and jump.span_s == even.span_s == 1.0
        quiet = seam_metrics(0.001 * broken[None], rate_hz, [fade], kept)[0]
        assert quiet.level_jump_db == pytest.approx(jump.level_jump_db, abs=0.01), "whatever the level"


def test_a_short_clip_is_compared_with_real_music() -> None:
    noise = 0.1 * torch.randn(1, 64000)
    fades, kept = [(16000, 17600)], [(0, 16000)]
    (seam,) = seam_metrics(noise, 16000, fades, kept)
    assert not seam.own and not seam.audible and (seam.level_limit_db, seam.change_limit_db) == REAL_DB[seam.span_s]
    assert seam.span_s == 0.4, "the longest that fits on either side"
    assert seam_metrics(noise, 16000, [], kept) == []
    assert seam_metrics(noise[:, :1000], 16000, [(300, 500)], [(0, 300)]) == []
    assert seam_metrics(noise, 16000, [(500, 1500)], [(0, 500)]) == [], "too little before it"


def test_a_step_of_six_decibels_is_seen_in_music_and_music_itself_is_not() -> None:
    """Tracks of the demo world, louder from a place on: over a second, most such steps stand out."""
    steps, none = [], []
    for index in range(4):
        whole_CS = torch.from_numpy(make_track(7, "test", index).waveform_S)[None]
        for place in (96000, 112000):
            louder_CS = torch.cat([whole_CS[:, :place], 2 * whole_CS[:, place:]], dim=1)
            fade, kept = (place - 1600, place), [(0, place - 1600)]
            none += [seam.audible for seam in seam_metrics(whole_CS, 16000, [fade], kept)]
            steps += [seam.audible for seam in seam_metrics(louder_CS, 16000, [fade], kept)]
    assert sum(steps) >= 6 and sum(none) <= 2 and len(steps) == len(none) == 8
