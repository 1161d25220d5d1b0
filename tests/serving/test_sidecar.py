"""What a server made is made again by `generate --from-sidecar`, to the byte of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from musiccm.audio.io import write_audio
from musiccm.cli import main
from musiccm.errors import MusiccmError
from musiccm.serving import MusicRequest
from musiccm.serving.limits import Limits
from musiccm.serving.sidecar import Sidecar

SAME = "the samples are those of the sidecar, to the bit"
GOOD: dict[str, Any] = {
    "format": 1, "model": {"content_hash": "", "decoder": "fast", "half": False}, "made": {"samples_sha256": ""},
    "request": {"model": "x", "prompts": [[0, "a"]]}}


@pytest.fixture
def made(make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Path, Path]]:
    """Sidecar and wav of three tasks."""
    monkeypatch.chdir(tmp_path)
    engine = make_engine()
    write_audio("clip.wav", torch.sin(torch.arange(12000) / 9) / 2, 16000)
    part = engine.new_upload()
    part.write_bytes(Path("clip.wav").read_bytes())
    source = engine.add_upload(part)["id"]
    requests = {
        "clip": MusicRequest("student", ((0.0, "slow organ chords"),), steps=2),
        "long": MusicRequest("student", ((0.0, "a bass"), (1.0, "drums")), "compose", 1.6, 2, 7,
                             sampler={"name": "tcd", "gamma": 0.4}, overlap=0.25, fusion="uniform", level="peak"),
        "inpaint": MusicRequest("student", ((0.0, "a bass"),), "inpaint", None, 1, 5, from_s=0.2, to_s=0.4,
                                source=source),
    }
    views = {name: engine.wait(engine.submit(request).id) for name, request in requests.items()}
    assert all(view.state == "done" for view in views.values())
    return {name: (engine.results.sidecar(view.id), engine.results.audio(view.id, "wav"))
            for name, view in views.items()}


def test_the_same_samples_are_made_again(made, pipeline, capsys):
    model = ["--model", str(pipeline.bundle.path)]
    for name, more in (("clip", []), ("long", []), ("inpaint", ["--inpaint", "clip.wav"])):
        sidecar, wav = made[name]
        assert main(["generate", "--from-sidecar", str(sidecar), "--out", f"{name}2.wav", *model, *more]) == 0
        shown = capsys.readouterr()
        assert SAME in shown.out, shown
        assert Path(f"{name}2.wav").read_bytes() == wav.read_bytes()
    values = json.loads(made["clip"][0].read_text())
    assert values["request"]["seed"] is not None and values["request"]["steps"] == 2  # also what was not asked for
    assert values["request"]["sampler"] == {"name": "lcm", "gamma": 1.0} and values["request"]["level"] == "loudness"
    assert values["model"]["content_hash"] == pipeline.bundle.content_hash()


def test_what_does_not_fit_a_sidecar_is_refused(made, pipeline, capsys, tmp_path):
    model = ["--model", str(pipeline.bundle.path)]
    clip, inpaint = str(made["clip"][0]), str(made["inpaint"][0])
    write_audio("other.wav", torch.sin(torch.arange(12000) / 7) / 2, 16000)
    for arguments, said in (
        (["--from-sidecar", clip, "a text", *model], "leave out the prompts"),
        (["--from-sidecar", clip, "--steps", "3", *model], "leave out --steps"),
        (["--from-sidecar", clip, "--model", str(pipeline.bundle.path.parent / "teacher")], "weights of the hash"),
        (["--from-sidecar", clip, "--vary", "clip.wav", *model], "is of the task generate"),
        (["--from-sidecar", inpaint, *model], "add --inpaint FILE"),
        (["--from-sidecar", inpaint, "--inpaint", "other.wav", *model], "is not the clip"),
        (["--from-sidecar", "none.json", *model], "none.json"),
    ):
        assert main(["generate", *arguments, "--out", "never.wav"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("never.wav").exists()


def test_a_clip_may_be_as_long_as_a_server_takes_them(made, pipeline, capsys):
    values = json.loads(made["inpaint"][0].read_text())
    Path("late.json").write_text(json.dumps({**values, "request": {**values["request"], "from_s": 700, "to_s": 710}}))
    assert main(["generate", "--from-sidecar", "late.json", "--inpaint", "clip.wav", "--out", "never.wav", "--model",
                 str(pipeline.bundle.path)]) == 2
    assert "--from, --to: expected 0 <= from < to <= 0.75 s, the length of clip.wav" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("model", 5, "a text"), ("model", ["x"], "a text"), ("model", None, "a text"), ("task", {}, "a text"),
    ("task", None, "a text"), ("prompts", [["0", "a"]], r"a list of \[seconds, text\]"),
    ("prompts", [[0, 5]], r"a list of \[seconds, text\]"), ("seconds", "1", "a number"),
    ("steps", 1.5, "a whole number"), ("steps", True, "a whole number"), ("seed", [3], "a whole number"),
    ("guidance_scale", {}, "a number"),
    ("sampler", "lcm", "name and fields"), ("level", 3, "a text"), ("overlap", False, "a number"),
    ("fusion", [], "a text"), ("strength", "much", "a number"), ("from_s", "0", "a number"), ("to_s", [1], "a number"),
    ("source", 7, "a text"),
])
def test_a_field_of_another_type_is_named(name, value, expected):
    good = MusicRequest("x", ((0.0, "a"),)).to_json()
    assert MusicRequest.from_json(good, "s.json").to_json() == good
    with pytest.raises(MusiccmError, match=f"s.json: {name}: expected {expected}, found"):
        MusicRequest.from_json({**good, name: value}, "s.json")


@pytest.mark.parametrize(("sampler", "said"), [
    ({"name": "ddpm"}, "sampler: expected one of ddim, lcm"), ({"name": ["lcm"]}, "sampler: expected one of ddim, lcm"),
    ({"name": "lcm", "gamma": "0.5"}, r"gamma: expected a number in \[0, 1\], found '0.5'"),
    ({"gamma": {}}, r"gamma: expected a number in \[0, 1\], found {}"),
    ({"schedule": 3}, "schedule: expected one of trailing, .*, found 3"),
    ({"name": "lcm", "eta": 1}, "sampler.eta: the sampler lcm has no such field; it has gamma"),
    ({"eta": 1}, "sampler.eta: no sampler has such a field; expected name, gamma, schedule"),
])
def test_what_is_no_sampler_is_named(tmp_path, capsys, sampler, said):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({**GOOD, "request": {**GOOD["request"], "sampler": sampler}}))
    with pytest.raises(MusiccmError, match=f"s.json: {said}"):
        Sidecar.read(path)
    assert main(["generate", "--from-sidecar", str(path), "--out", str(tmp_path / "never.wav")]) == 2
    assert f"{path}: " in capsys.readouterr().err and not (tmp_path / "never.wav").exists()
    with pytest.raises(MusiccmError, match=f"^{said}"):
        MusicRequest("student", ((0.0, "a bass"),), sampler=sampler).check(Limits())


def test_fields_of_the_models_own_sampler_need_no_name(made, pipeline):
    values = json.loads(made["clip"][0].read_text())
    Path("fields.json").write_text(json.dumps({**values, "request": {**values["request"], "sampler": {"gamma": 1}}}))
    assert main(["generate", "--from-sidecar", "fields.json", "--out", "fields.wav", "--model",
                 str(pipeline.bundle.path)]) == 0
    assert Path("fields.wav").read_bytes() == made["clip"][1].read_bytes()


@pytest.mark.parametrize("change", [
    {"format": 2}, {"model": None}, {"model": {"content_hash": 3, "decoder": "fast"}},
    {"model": {"content_hash": "", "decoder": "../x"}},
    {"model": {"content_hash": "", "decoder": "fast", "half": "no"}},
    {"made": []}, {"request": None}, {"request": {"model": "x"}},
    {"request": {"model": "x", "prompts": "y"}}, {"request": {"model": "x", "prompts": [[0, "a"]], "dance": 1}},
    {"request": {"model": "x", "prompts": [[0, "a"]], "sampler": "lcm"}},
])
def test_files_that_are_no_sidecars(tmp_path, change):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(GOOD))
    Sidecar.read(path)
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(MusiccmError, match="s.json"):
        Sidecar.read(path)
