"""Models that were compiled ahead of time, against the same ones computed as usual."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tiny_bundle import build_random_student
from torch._inductor.exc import InvalidCxxCompiler

from musiccm.bounds import Bucket
from musiccm.cli import main
from musiccm.compiling import compile_ahead
from musiccm.errors import MusiccmError
from musiccm.models.acceleration.compiled_package import FILE
from musiccm.models.acceleration.packaged_call import PackagedCall
from musiccm.pipeline import Pipeline

TEXT, SEED = "a calm piano melody", 5
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


def compiled_by_command(student: Path, folder: Path) -> Path:
    assert main(["export", "--compiled", str(student), "--out", str(folder), "--bucket", "1x2", "--device", "cpu"]) == 0
    return folder


ALL_PARTS = Pipeline.compiled_parts.fget
#: Without headers compiled beforehand, and without trying out each set of vector instructions, one file takes half the
#: time; three take as much as before.
QUICK = {"cpp.vec_isa_ok": True, "cpp.simdlen": 256, "cpp_cache_precompile_headers": False,
         "aot_inductor.precompile_headers": False}


def of_the_unet_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the U-Net for all that is compiled: each part more is ten seconds, and a test marked slow has them all."""
    assert ALL_PARTS is not None
    monkeypatch.setattr(Pipeline, "compiled_parts", property(lambda self: {"unet": ALL_PARTS(self)["unet"]}))


@pytest.fixture(scope="module")
def compiled_unet(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(QUICK):
        of_the_unet_alone(patch)
        return compiled_by_command(student, tmp_path_factory.mktemp("compiled") / "student")


@pytest.fixture
def package(compiled_unet: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One clip's U-Net, compiled by the command."""
    of_the_unet_alone(monkeypatch)
    return compiled_unet


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 1e-4) -> None:
    """Differences 80 dB below the sound."""
    assert found.shape == expected.shape and (found - expected).norm() < bound * expected.norm()


def calls(pipeline: Pipeline) -> dict[str, PackagedCall]:
    found = {name: getattr(owner, method) for name, (owner, method) in pipeline.compiled_parts.items()}
    assert all(isinstance(call, PackagedCall) for call in found.values())
    return found


def compiled_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever was not compiled fail."""
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed as usual")

    for call in calls(pipeline).values():
        monkeypatch.setattr(call, "plain", refuse)


@needs_compiler
def test_a_compiled_model_makes_the_usual_sound(
    student: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Pipeline.from_pretrained(student)([TEXT], 2, [SEED])
    compiled = Pipeline.from_pretrained(student).accelerate(compiled=package)
    assert set(calls(compiled)) == {"unet"}
    compiled_alone(compiled, monkeypatch)
    found = compiled([TEXT], 2, [SEED])
    close(found, expected)
    assert not found.is_inference()
    close(compiled([TEXT], 1, [SEED]), Pipeline.from_pretrained(student)([TEXT], 1, [SEED]))  # other steps, same shapes
    compiled.warm_up(Bucket(1, 2), record=True)
    close(compiled([TEXT], 2, [SEED]), expected)


@needs_compiler
def test_the_weights_are_those_of_the_bundle(student: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = Pipeline.from_pretrained(student), Pipeline.from_pretrained(student).accelerate(compiled=package)
    before = plain([TEXT], 2, [SEED])
    for pipeline in (plain, compiled):
        pipeline.denoiser.unet.conv_in.weight.mul_(1.5)
        pipeline.codec.decoder.head.weight.mul_(0.9)
    compiled_alone(compiled, monkeypatch)
    found = compiled([TEXT], 2, [SEED])
    close(found, plain([TEXT], 2, [SEED]))
    assert (found - before).norm() > 0.01 * before.norm()


@needs_compiler
def test_other_shapes_are_made_as_usual_and_said_once(
    student: Path, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, compiled = Pipeline.from_pretrained(student), Pipeline.from_pretrained(student).accelerate(compiled=package)
    texts = [TEXT, "slow organ chords"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            close(compiled(texts, 2, [1, 2]), plain(texts, 2, [1, 2]))
        close(compiled.compose(TEXT, 1.5, 2, 3), plain.compose(TEXT, 1.5, 2, 3))
    said = [record.getMessage() for record in caplog.records if "nothing was compiled" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == ["unet"]
    assert "float32[2, 4, 4, 4]" in said[0] and said[0].count("float32[1, 4, 4, 4]") == 1


@needs_compiler
def test_threads_take_turns(student: Path, package: Path) -> None:
    compiled = Pipeline.from_pretrained(student).accelerate(compiled=package)
    expected = [compiled([TEXT], 2, [seed]) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}

    def make(seed: int) -> None:
        found[seed] = compiled([TEXT], 2, [seed])

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


@needs_compiler
def test_what_is_compiled_needs_no_compiler(student: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any other program."""
    def start(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"starts {args}")

    monkeypatch.setattr("subprocess.Popen.__init__", start)
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.pick_vec_isa", start)  # what it compiles, the fixture has already
    pipeline = Pipeline.from_pretrained(student).accelerate(compiled=package)
    assert pipeline([TEXT], 2, [SEED]).isfinite().all()


def test_without_a_compiler_it_says_so(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler()

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(MusiccmError, match="found none; install g\\+\\+"):
        compile_ahead(Pipeline.from_pretrained(student), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def restated(**target: Any) -> Callable[[Path], None]:
    """A package that says that it was compiled for something else."""
    def change(folder: Path) -> None:
        stated = json.loads((folder / FILE).read_text())
        (folder / FILE).write_text(json.dumps({**stated, "target": {**stated["target"], **target}}))

    return change


def recalled(**changed: str) -> Callable[[Path], None]:
    """A package whose first call is stated otherwise."""
    def change(folder: Path) -> None:
        stated = json.loads((folder / FILE).read_text())
        stated["calls"][0].update(changed)
        (folder / FILE).write_text(json.dumps(stated))

    return change


def cut(folder: Path) -> None:
    with (folder / "unet-0.pt2").open("r+b") as file:
        file.truncate(1000)


@needs_compiler
@pytest.mark.parametrize(("change", "said"), [
    (restated(torch="1.0"), "for torch '1.0', found"),
    (restated(device="cuda", device_name="a card"), "for device 'cuda', found 'cpu' here"),
    (restated(device_name="a card"), "for device_name 'a card', found"),
    (restated(capability="AVX1024"), "for capability 'AVX1024', found"),
    (restated(bundle="0" * 64), "for bundle '0000"),
    (restated(musiccm="0.0.1"), "for musiccm '0.0.1', found"),
    (restated(half=True), "for half True, found False here"),
    (restated(decoder="original"), "for decoder 'original', found 'fast' here"),
    (recalled(weights="0" * 64), "for weights of other shapes, types or strides"),
    (recalled(file="../unet-0.pt2"), "expected the name of a file beside it"),
    (recalled(part="lyrics"), "found 'lyrics'"),
    (cut, "unet-0.pt2: missing, or other bytes"),
    (lambda folder: (folder / "unet-0.pt2").unlink(), "unet-0.pt2: missing, or other bytes"),
    (lambda folder: (folder / FILE).unlink(), "not found; a package that"),
    (lambda folder: (folder / FILE).write_text('{"schema": 99}'), "expected schema 1, found 99"),
    (lambda folder: (folder / FILE).write_text('{"schema": 1}'), "damaged or changed"),
])
def test_a_package_for_something_else_is_refused(
    change: Callable[[Path], Any], said: str, student: Path, package: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    change(folder)
    with pytest.raises(MusiccmError, match=said):
        Pipeline.from_pretrained(student).accelerate(compiled=folder)


@needs_compiler
def test_other_weights_of_the_same_shapes_are_refused(student: Path, package: Path, tmp_path: Path) -> None:
    other = Pipeline.from_pretrained(student)
    shutil.copytree(student.parent, tmp_path / "both")
    other.denoiser.unet.conv_in.weight.mul_(2)
    other.denoiser.unet.save_pretrained(tmp_path / "both" / student.name / "unet")
    pipeline = Pipeline.from_pretrained(tmp_path / "both" / student.name)
    with pytest.raises(MusiccmError, match="was compiled for bundle"):
        pipeline.accelerate(compiled=package)
    assert not pipeline.accelerated, "nothing of it was changed"
    pipeline.accelerate()


def test_what_cannot_be_asked_for(student: Path, tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="compiled: expected no backend"):
        Pipeline.from_pretrained(student).accelerate(backend="inductor", compiled=tmp_path)
    (tmp_path / "file").touch()
    for overwrite, said in ((False, "is not empty"), (True, "is no compiled package")):
        with pytest.raises(MusiccmError, match=said):
            compile_ahead(Pipeline.from_pretrained(student), tmp_path, overwrite=overwrite)
    accelerated = Pipeline.from_pretrained(student).accelerate()
    with pytest.raises(MusiccmError, match="was accelerated before"):
        compile_ahead(accelerated, tmp_path / "new")


@pytest.mark.parametrize(("arguments", "said"), [
    (["export", "--compiled", "m", "--out", "x", "--dtype", "float16"], "--dtype: expected with --checkpoint"),
    (["export", "--checkpoint", "m", "--out", "x", "--bucket", "1"], "--bucket: expected with --compiled"),
    (["export", "--compiled", "musiccm-tiny-student", "--out", "x", "--bucket", "1x"], "--bucket: expected BATCH"),
    (["generate", "music", "--compiled", "none"], "none/compiled.json: not found"),
    (["generate", "music", "--compiled", "none", "--compile", "inductor"], "leave out one of the two"),
    (["serve", "--port", "0", "--compiled", "other=x"], "expected the name of a served model before ="),
    (["serve", "--port", "0", "--compiled", "x", "--compiled", "musiccm-tiny-student=y"], "found a second one"),
    (["serve", "--port", "0", "--compiled", "x", "--compile", "inductor"], "leave out one of the two"),
    (["serve", "--port", "0", "--compiled", "none"], "none/compiled.json: not found"),
])
def test_the_commands_refuse(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@needs_compiler
def test_generate_loads_a_package(student: Path, package: Path, tmp_path: Path) -> None:
    sounds = []
    for name, options in (("plain", []), ("compiled", ["--compiled", str(package)])):
        out = tmp_path / f"{name}.wav"
        assert main(["generate", TEXT, "--model", str(student), "--out", str(out), "--steps", "2", "--seed", "3",
                     "--level", "none", "--device", "cpu", *options]) == 0
        sounds.append(torch.from_numpy(soundfile.read(out, dtype="float32")[0]))
    close(sounds[1], sounds[0], 1e-3)  # of 16 bits


@pytest.mark.slow
@needs_compiler
def test_every_part_is_compiled(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiled_by_command(student, tmp_path / "x")
    compiled = Pipeline.from_pretrained(student).accelerate(compiled=folder)
    assert set(calls(compiled)) == {"text_encoder", "unet", "decoder"}
    compiled_alone(compiled, monkeypatch)
    close(compiled([TEXT], 2, [SEED]), Pipeline.from_pretrained(student)([TEXT], 2, [SEED]))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("half", [False, True])
def test_the_packaged_student_compiled(half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the two are rounded at other places: a step's latents differ by as much as from those of float32."""
    compile_ahead(Pipeline.from_pretrained("musiccm-tiny-student"), tmp_path / "x", Bucket(1, 1), half=half)
    compiled = Pipeline.from_pretrained("musiccm-tiny-student").accelerate(half, compiled=tmp_path / "x")
    compiled_alone(compiled, monkeypatch)
    expected = Pipeline.from_pretrained("musiccm-tiny-student")([TEXT], 1, [SEED])
    close(compiled([TEXT], 1, [SEED]), expected, 0.1 if half else 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for CUDA")
@needs_compiler
def test_on_a_gpu_a_package_is_recorded_as_a_graph(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ahead(Pipeline.from_pretrained(student).to("cuda"), tmp_path / "x", Bucket(2, 2))
    compiled = Pipeline.from_pretrained(student).to("cuda").accelerate(compiled=tmp_path / "x")
    compiled_alone(compiled, monkeypatch)
    compiled.warm_up(Bucket(2, 2))
    assert compiled.warmed
    texts = [TEXT, "slow organ chords"]
    close(compiled(texts, 2, [1, 2]), Pipeline.from_pretrained(student).to("cuda")(texts, 2, [1, 2]), 1e-3)
