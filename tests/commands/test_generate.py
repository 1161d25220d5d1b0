"""`musiccm generate`: lengths, streams, edits, and what it refuses before it computes."""

from __future__ import annotations

import io
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from musiccm.audio.wav_stream import wav_header
from musiccm.bounds import MAX_WHOLE_S, SAMPLER_NAMES
from musiccm.cli import main
from musiccm.pipeline import Pipeline
from musiccm.samplers import SAMPLERS, Tcd

Capture = pytest.CaptureFixture[str]


def generate(model: Path, *arguments: str) -> int:
    """With a prompt before the arguments, which may begin with more of them; the model's own samples."""
    return main(["generate", "a tune", *arguments, "--model", str(model), "--device", "cpu", "--steps", "2", "--level",
                 "none"])


def heard(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_long_music_and_its_stream(model: Path, here: Path) -> None:
    plan = ["--seconds", "2.5", "--at", "1.2", "slow organ chords"]
    assert generate(model, *plan, "--out", "whole.flac") == 0
    assert generate(model, *plan, "--out", "stream.wav", "--stream") == 0
    expected = Pipeline.from_pretrained(model).compose([(0, "a tune"), (1.2, "slow organ chords")], 2.5, 2)
    for name in ("whole.flac", "stream.wav"):
        np.testing.assert_allclose(heard(name), expected.clamp(-1, 1), atol=2e-4)
    assert generate(model, "--decoder", "original", "--out", "original.flac") == 0
    slow = Pipeline.from_pretrained(model, decoder="original")(["a tune"], 2)
    np.testing.assert_allclose(heard("original.flac"), slow[0].clamp(-1, 1), atol=2e-4)


def test_weights_that_are_not_finite_are_named(model: Path, here: Path, capsys: Capture) -> None:
    for part, name, more in (("unet", "conv_out.bias", ()), ("vae", "decoder.conv_out.bias", ("--stream",))):
        broken = here / part
        shutil.copytree(model, broken)
        path = broken / part / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[name][0] = float("nan")
        save_file(weights, path, metadata={"format": "pt"})
        arguments = ["--seconds", "1.5", *more, "--decoder", "original", "--out", "z.wav"]
        assert generate(broken, *arguments) == 2
        said = capsys.readouterr().err
        assert "z.wav: expected finite samples, found NaN or infinity" in said
        assert f"{broken} hold NaN or infinity ({part}: {name})" in said and "Traceback" not in said


def test_a_sampler_by_name(model: Path, here: Path, capsys: Capture) -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    pipeline = Pipeline.from_pretrained(model)
    for number, (options, sampler) in enumerate([(["--sampler", "ddim"], "ddim"),
                                                 (["--sampler", "tcd", "--gamma", "0.7"], Tcd(0.7))]):
        assert generate(model, *options, "--out", f"{number}.wav") == 0
        expected = pipeline(["a tune"], 2, sampler=sampler)[0]
        np.testing.assert_allclose(heard(f"{number}.wav"), expected.clamp(-1, 1), atol=2e-4)
    assert not np.allclose(heard("0.wav"), heard("1.wav"), atol=1e-3)
    assert generate(model, "--sampler", "heun", "--out", "no.wav") == 2
    assert "--sampler: the model is a distilled student" in capsys.readouterr().err
    assert generate(model, "--sampler", "ddim", "--gamma", "0.5", "--out", "no.wav") == 2
    assert "--gamma: the sampler ddim has none" in capsys.readouterr().err


def test_sound_on_the_standard_output(model: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert generate(model, "--seconds", "1.5", "--stream", "--out", "-") == 0
    streamed = capfdbinary.readouterr()
    assert generate(model, "--seconds", "1.5", "--out", "-") == 0
    whole = capfdbinary.readouterr()
    assert b"1.5 s in" in streamed.err and b"1.5 s in" in whole.err
    sounds = [soundfile.read(io.BytesIO(data.out), dtype="float32")[0] for data in (streamed, whole)]
    assert len(sounds[0]) == 24000 and len(streamed.out) == 48044
    np.testing.assert_allclose(sounds[0], sounds[1], atol=2e-4)
    assert list(here.iterdir()) == []


def test_edits(model: Path, here: Path, capsys: Capture) -> None:
    """Clips keep their samples, rate, channels and sample format; what is said of them is one sentence."""
    time_S = np.arange(70560) / 44100
    tune_SC = np.stack([np.sin(2000 * time_S), np.sin(3000 * time_S)], 1) * 0.4
    soundfile.write("tune.wav", tune_SC, 44100, subtype="PCM_24")
    given, fade = soundfile.read("tune.wav", dtype="int32")[0], 4410
    assert generate(model, "--continue", "tune.wav", "--seconds", "2.2", "--out", "c.wav") == 0
    shown = capsys.readouterr().out
    assert "c.wav: what lies from 0.00 to 1.50 s is kept to the sample, what lies from 1.60 to 2.20 s is new" in shown
    assert "warning: c.wav: the seam at 1.55 s stands out" in shown, "a network of random weights makes no music"
    assert generate(model, "--inpaint", "tune.wav", "--from", "0.5", "--to", "0.9", "--out", "i.flac") == 0
    assert "i.flac: what lies from 0.00 to 0.40 s and from 1.08 to 1.60 s is kept" in capsys.readouterr().out
    assert generate(model, "another tune", "--vary", "tune.wav", "--strength", "0.3", "--out", "v.wav") == 0
    shown = capsys.readouterr().out
    assert "v_2.wav: all of it is new sound, and no sample of the clip is kept" in shown and "stands out" not in shown
    made = {name: soundfile.read(name, dtype="int32")[0] for name in ("c.wav", "i.flac", "v_1.wav", "v_2.wav")}
    assert [sound.shape for sound in made.values()] == [(97020, 2), *[(70560, 2)] * 3]
    assert {(info.samplerate, info.subtype) for info in map(soundfile.info, made)} == {(44100, "PCM_24")}
    np.testing.assert_array_equal(made["c.wav"][: 70560 - fade], given[:-fade])
    for kept in (slice(0, 22050 - fade), slice(43218 + fade, None)):
        np.testing.assert_array_equal(made["i.flac"][kept], given[kept])
    assert not np.array_equal(made["v_1.wav"], made["v_2.wav"])


def test_an_edit_on_the_standard_output(
    model: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    soundfile.write("tune.wav", np.sin(np.arange(17640) / 9) * 0.4, 22050)
    assert generate(model, "--continue", "tune.wav", "--seconds", "1", "--out", "-") == 0
    shown = capfdbinary.readouterr()
    sound, rate_hz = soundfile.read(io.BytesIO(shown.out), dtype="int16")
    np.testing.assert_array_equal(sound[:15435], soundfile.read("tune.wav", dtype="int16")[0][:15435])
    assert rate_hz == 22050 and len(sound) == 22050 and b"0.70 s is kept to the sample" in shown.err


def test_files_are_replaced_only_when_asked(model: Path, here: Path, capsys: Capture) -> None:
    (here / "a_2.wav").write_text("mine")
    assert generate(model, "another tune", "--out", "a.wav") == 2
    assert "a_2.wav: exists" in capsys.readouterr().err and not (here / "a_1.wav").exists()
    assert generate(model, "--stream", "--seconds", "1", "--out", "a_2.wav") == 2
    assert (here / "a_2.wav").read_text() == "mine"
    assert generate(model, "another tune", "--out", "a.wav", "--force") == 0
    assert len(heard("a_2.wav")) == 10240


@pytest.mark.parametrize("arguments", [["--out", "a.flac"], ["--out", "a.wav", "--stream", "--seconds", "1"]])
def test_a_file_that_comes_while_music_is_made_stays(
    model: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    path, load = here / arguments[1], Pipeline.from_pretrained

    def slowly(*args: Any, **kwargs: Any) -> Pipeline:
        path.write_text("theirs")
        return load(*args, **kwargs)

    monkeypatch.setattr(Pipeline, "from_pretrained", slowly)
    assert generate(model, *arguments) == 2
    shown = capsys.readouterr().err
    assert f"{path.name}: was made by something else meanwhile" in shown and "Traceback" not in shown
    assert path.read_text() == "theirs" and list(here.iterdir()) == [path]
    path.unlink()
    assert generate(model, *arguments, "--force") == 0
    assert len(heard(path.name)) > 10000


@pytest.mark.parametrize(("arguments", "said"), [
    (["--seconds", "nan"], "--seconds: expected seconds above 0"),
    (["--seconds", "0"], "--seconds: expected seconds above 0"),
    (["--seconds", "-3", "--stream"], "--seconds: expected seconds above 0"),
    (["--seconds", "inf", "--stream"], "without --seconds a stream goes on until it is interrupted"),
    (["--seconds", "inf"], "up to 3600, found inf"),
    (["--seconds", "4000"], "--stream makes longer"),
    (["--seconds", "1e6", "--stream"], "4 GiB"),
    (["--seconds", "2", "--overlap", "1"], "overlap"),
    (["--seconds", "2", "--fusion", "mean"], "uniform, triangular, swap"),
    (["--seconds", "2", "--at", "soon", "x"], "--at soon"),
    (["--seconds", "2", "--at", "1.9", "x"], "would not be used"),
    (["more", "--at", "1", "x"], "give one"),
    (["more", "--stream"], "one prompt"),
    (["--stream", "--vary", "x.wav"], "leave out --vary"),
    (["--vary", "gone.wav"], "gone.wav: missing"),
    (["--vary", "x.wav", "--seconds", "3"], "own length"),
    (["--inpaint", "x.wav", "--from", "3"], "--to"),
    (["--from", "3", "--to", "4"], "--inpaint"),
    (["--strength", "0.3"], "--vary"),
    (["--stream", "--out", "a.flac"], ".wav"),
    (["--out", "."], "expected a name"),
    (["--out", "file/x.wav"], "could not be written"),
    (["more", "--out", "-"], "one clip"),
    (["a\udcff"], "prompt 2"),
])
def test_refusals(model: Path, here: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    (here / "file").write_text("")
    assert generate(model, *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert [path.name for path in here.iterdir()] == ["file"]


def test_clips_that_cannot_be_continued(model: Path, here: Path, capsys: Capture) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
    (here / "broken.wav").write_bytes(b"no sound at all")
    soundfile.write("nan.wav", np.where(np.arange(32000) == 5, np.nan, samples), 16000, subtype="FLOAT")
    soundfile.write("cut.flac", samples, 16000)
    (here / "cut.flac").write_bytes((here / "cut.flac").read_bytes()[:30000])
    (here / "long.wav").write_bytes(wav_header(8000, 16000 * 3601))
    with (here / "long.wav").open("r+b") as file:
        file.truncate(44 + 16000 * 3601)
    for name, said in (("broken.wav", "the content is a text"), ("nan.wav", "NaN or infinite samples"),
                       ("cut.flac", "re-encode or remove"), ("long.wav", "found 3601 s; cut it")):
        assert generate(model, "--continue", name, "--out", "new.wav") == 2
        shown = capsys.readouterr().err
        assert f"musiccm: {name}: " in shown and said in shown and "Traceback" not in shown
    assert not (here / "new.wav").exists()


def test_help_states_limits_and_formats(capsys: Capture) -> None:
    assert main(["generate", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"up to {MAX_WHOLE_S:g} unless it is streamed" in shown and ".wav, .flac, .ogg or .mp3" in shown


def test_a_file_that_takes_no_more_while_music_is_streamed(model: Path, here: Path, capsys: Capture) -> None:
    """Every write beyond 50,000 bytes fails half way: a bit more than a second and a half."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert generate(model, "--stream", "--seconds", "4", "--out", "a.wav") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = capsys.readouterr()
    assert "a.wav: could not be written" in shown.err and "ulimit -f" in shown.err and "Traceback" not in shown.err
    kept_s = len(heard("a.wav")) / 16000
    assert 0.3 < kept_s < 1.6 and f"a.wav: ended early; the {kept_s:.1f} s that were made are kept" in shown.out
    expected = Pipeline.from_pretrained(model).compose("a tune", 4, 2)[: len(heard("a.wav"))]
    np.testing.assert_allclose(heard("a.wav"), expected.clamp(-1, 1), atol=2e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_an_endless_stream_that_is_ended_leaves_a_wav(model: Path, here: Path, way: signal.Signals) -> None:
    command = ["generate", "piano " * 200, "--model", str(model), "--stream", "--out", "a.wav"]
    process = forked.Command(command, here)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not ((here / "a.wav").exists() and (here / "a.wav").stat().st_size > 1e5):
            time.sleep(0.05)
        process.send_signal(way)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert len(heard("a.wav")) > 40000 and np.abs(heard("a.wav")).max() > 1e-3
    assert "is cut to the" in printed and "piano piano" in printed, "a prompt that is too long is reported"
    if way == signal.SIGTERM:
        assert process.returncode == 143 and "musiccm: ended by SIGTERM" in printed and "Traceback" not in printed
        kept_s = len(heard("a.wav")) / 16000
        assert f"a.wav: interrupted; the {kept_s:.1f} s that were made are kept" in printed


#: Song Describer's columns, and ATTM's.
SONG_DESCRIBER = """caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration
859,1004034,"an electronic tune, slow",True,0,368880,118196,34/1004034.mp3,202.5
860,1004034,synth pads,True,1,368880,118196,34/1004034.mp3,202.5
990,1007274,acoustic guitar,,1,429137,118548,74/1007274.mp3,140.2
"""
ATTM = 'id,prompt\n0,"a calm tune, slow"\n1,a fast tune\n'


def from_file(model: Path, *arguments: str) -> int:
    return main(["generate", *arguments, "--model", str(model), "--device", "cpu", "--steps", "2", "--level", "none"])


@pytest.mark.parametrize(("ids", "says"), [
    (("a", "./a"), "the ids 'a' and './a' name one file"), (("a", " "), "expected an id for each prompt, found ' '"),
])
def test_ids_that_name_one_file_or_none_are_refused_first(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str], ids: tuple[str, str], says: str
) -> None:
    (here / "twice.csv").write_text("id,caption\n" + "".join(f"{name},a tune\n" for name in ids))
    assert from_file(model, "--prompts", "twice.csv", "--out", "twice") == 2
    assert says in capsys.readouterr().err and not (here / "twice").exists()


def test_prompts_of_a_file_and_their_ids(model: Path, here: Path) -> None:
    Path("describer.csv").write_text(SONG_DESCRIBER)
    Path("attm.csv").write_text(ATTM)
    assert from_file(model, "--prompts", "describer.csv", "--only", "is_valid_subset=True", "--out", "sdd") == 0
    assert from_file(model, "--prompts", "attm.csv", "--out", "attm", "--seed", "3") == 0
    assert sorted(path.name for path in here.rglob("*.wav")) == ["0.wav", "1.wav", "859.wav", "860.wav"]
    pipeline = Pipeline.from_pretrained(model)
    for folder, seed, texts in (("sdd", 0, {"859": "an electronic tune, slow", "860": "synth pads"}),
                                ("attm", 3, {"0": "a calm tune, slow", "1": "a fast tune"})):
        for name, clip in zip(texts, pipeline(list(texts.values()), 2, seed), strict=True):
            np.testing.assert_allclose(heard(f"{folder}/{name}.wav"), clip.clamp(-1, 1), atol=2e-4)


@pytest.mark.parametrize(("arguments", "said"), [
    (["a tune", "--prompts", "p.csv", "--out", "x"], "either prompts or --prompts FILE, found both"),
    (["--out", "x"], "either prompts or --prompts FILE, found neither"),
    (["--prompts", "p.csv"], "--out out.wav: --prompts writes ID.wav into a folder"),
    (["--prompts", "p.csv", "--out", "x", "--stream"], "leave out --stream"),
    (["--prompts", "p.csv", "--out", "x", "--only", "valid"], "--only is_valid_subset=True"),
    (["a tune", "--only", "a=b"], "--only chooses rows of --prompts FILE"),
    (["--prompts", "p.csv", "--out", "x", "--only", "is_valid_subset=False"],
     "no row whose is_valid_subset is 'False'; it has '', 'True'"),
    (["--prompts", "p.csv", "--out", "x", "--only", "split=test"], "no column split to choose by, found caption_id"),
    (["--prompts", "climbs.csv", "--out", "x"], "'../0' would be written outside of --out x"),
    (["--prompts", "json.json", "--out", "x", "--only", "a=b"], "has no column a to choose by"),
    (["--prompts", "p.csv", "--out", "there", "--only", "is_valid_subset=True"], "exists, and is not overwritten"),
])
def test_prompts_that_cannot_be_taken_are_refused(here: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    Path("p.csv").write_text(SONG_DESCRIBER)
    Path("climbs.csv").write_text("id,prompt\n../0,a tune\n")
    Path("json.json").write_text('{"0": "a tune"}')
    Path("there").mkdir()
    Path("there/860.wav").write_bytes(b"mine")
    assert from_file(Path("nowhere"), *arguments) == 2
    assert said in capsys.readouterr().err
