"""Bad input: one message that names the file and a failing exit code; bad audio is counted and listed. No traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_corpus import sound, write_clip, write_corpus

from musiccm import cli
from musiccm.data.latent_cache.dataset import LatentCache

from .conftest import World, checkpoints, evaluation

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, *arguments: object, code: int = 2) -> str:
    """Run a command that must fail, and return its one message."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "MUSICCM_DEBUG" not in shown
    return shown[shown.index("musiccm: ") :]


@pytest.fixture
def config(world: World, here: Path) -> Path:
    return world.experiment(here, "bad", [checkpoints(1)], max_steps=1, limit_val_batches=0)


@pytest.mark.parametrize("command", ["fit", "test", "prepare"])
def test_configuration_files(here: Path, capsys: Capture, command: str) -> None:
    start = [command, *(["latents"] if command == "prepare" else []), "--config"]
    assert "gone.yaml does not exist" in fails(capsys, *start, "gone.yaml")
    (here / "binary.yaml").write_bytes(b"\x00\xff\xfe")
    assert "binary.yaml" in fails(capsys, *start, "binary.yaml")
    (here / "broken.yaml").write_text("model: [1, 2")
    assert "broken.yaml is not valid YAML" in fails(capsys, *start, "broken.yaml")
    (here / "child.yaml").write_text("base: parent.yaml\n")
    shown = fails(capsys, *start, "child.yaml")
    assert "parent.yaml" in shown and "child.yaml" in shown


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def test_checkpoints(config: Path, here: Path, capsys: Capture) -> None:
    (here / "junk.ckpt").write_bytes(b"junk, not a checkpoint")
    (here / "empty.ckpt").write_bytes(b"")
    torch.save({"something": torch.zeros(3)}, here / "other.ckpt")
    torch.save({"state_dict": Evil(), "pytorch-lightning_version": "2.6.6"}, here / "evil.ckpt")
    whole = torch.randn(4000)
    torch.save({"state_dict": {"a": whole}}, here / "cut.ckpt")
    (here / "cut.ckpt").write_bytes((here / "cut.ckpt").read_bytes()[:9000])
    for name in ("gone", "junk", "empty", "cut", "evil", "other"):
        for command in ("fit", "test"):
            assert f"{name}.ckpt" in fails(capsys, command, "--config", config, "--ckpt_path", f"{name}.ckpt")
        exported = fails(capsys, "export", "--checkpoint", f"{name}.ckpt", "--out", "out", "--config", config)
        assert f"{name}.ckpt" in exported and not (here / "out").exists()
    assert not (here / "executed").exists(), "code from a checkpoint was run"


def test_corpus_and_cache_folders(world: World, config: Path, here: Path, capsys: Capture) -> None:
    assert "gone: no such corpus" in fails(capsys, "fit", "--config", config, "--data.init_args.root", "gone")
    assert "gone: no such corpus" in fails(capsys, "prepare", "latents", "--config", config, "--root", "gone")
    (here / "half" / "train").mkdir(parents=True)
    assert "half" in fails(capsys, "fit", "--config", config, "--data.init_args.root", "half")
    shown = fails(capsys, "fit", "--config", config, "--data.init_args.cache_dir", "nowhere")
    assert "nowhere" in shown and "prepare latents" in shown
    cache = Path(shutil.copytree(world.cache, here / "cache"))
    shard = next((cache / "train").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:200])
    shown = fails(capsys, "fit", "--config", config, "--data.init_args.cache_dir", cache)
    assert shard.name in shown and "prepare latents" in shown


@pytest.mark.parametrize(
    ("part", "file"), [("unet", "config.json"), ("vae", "diffusion_pytorch_model.safetensors"),
                       ("text_encoder", "model.safetensors"), ("vocoder", "config.json")],
)
def test_bundle_parts(world: World, config: Path, here: Path, capsys: Capture, part: str, file: str) -> None:
    bundle = Path(shutil.copytree(world.bundle, here / "bundle"))

    def try_all() -> list[str]:
        return [
            fails(capsys, "generate", "a tune", "--model", bundle),
            fails(capsys, "fit", "--config", config, "--model.init_args.bundle", bundle,
                  "--data.init_args.bundle", bundle),
        ]

    whole = (bundle / part / file).read_bytes()
    (bundle / part / file).write_bytes(whole[: len(whole) // 2])
    assert all(f"bundle/{part}" in shown for shown in try_all())
    (bundle / part / file).unlink()
    assert all(f"bundle/{part}" in shown and file in shown for shown in try_all())
    shutil.rmtree(bundle / part)
    assert all(f"bundle/{part}" in shown for shown in try_all())
    shutil.rmtree(bundle)
    assert all(str(bundle) in shown for shown in try_all())


def test_a_missing_judge_is_said_before_training(world: World, here: Path, capsys: Capture) -> None:
    config = world.experiment(here, "judged", [evaluation()], max_steps=1)
    bundle = Path(shutil.copytree(world.bundle, here / "bundle"))
    shutil.rmtree(bundle / "evaluators" / "tagger")
    bundles = ["--model.init_args.bundle", bundle, "--data.init_args.bundle", bundle]
    shown = fails(capsys, "fit", "--config", config, *bundles)
    assert "bundle/evaluators/tagger" in shown


def test_bad_audio_and_labels_are_counted_and_listed(world: World, here: Path, capsys: Capture) -> None:
    corpus = write_corpus(here / "corpus", train=20, test=4)
    write_clip(corpus, "train", "silent", np.zeros(32000, np.float32))
    write_clip(corpus, "train", "short", sound(1, 0.3))
    write_clip(corpus, "train", "nan", np.where(np.arange(32000) == 5, np.nan, sound(2)), ".wav")
    write_clip(corpus, "train", "unreadable", sound(3))
    (corpus / "train" / "unreadable.flac").write_bytes(b"no audio at all")
    write_clip(corpus, "train", "empty", sound(3))
    (corpus / "train" / "empty.flac").write_bytes(b"")
    write_clip(corpus, "train", "not_json", sound(4), label="{oops")
    write_clip(corpus, "train", "stereo", np.stack([sound(5), sound(6)], axis=1))
    write_clip(corpus, "train", "cd_rate", sound(7, 2.0, 44100), ".flac", 44100)
    for path in (*corpus.glob("train/cd_rate.flac"), *corpus.glob("label/cd_rate.json")):
        path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.suffix))  # a name that is not UTF-8 is no fault
    bad = {"silent": "silent", "short": "too_short", "nan": "nan", "unreadable": "unreadable", "empty": "zero_byte",
           "not_json": "not_json"}

    path = world.experiment(here, "spoilt", [checkpoints(1)], max_steps=1, limit_val_batches=0)
    content = yaml.safe_load(path.read_text())
    content["data"]["init_args"] |= {"root": str(corpus), "cache_dir": str(here / "cache"), "windows_per_track": 1}
    path.write_text(yaml.safe_dump(content))
    shown = fails(capsys, "prepare", "latents", "--config", path)
    assert "22 of 28 audio files can be used" in shown and "report-train.json" in shown and ".flac: " in shown

    content["data"]["init_args"]["max_bad_fraction"] = 0.3
    path.write_text(yaml.safe_dump(content))
    assert cli.main(["prepare", "latents", "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "22 of 28 audio files can be used" in printed and "1 not_json" in printed and "1 nan" in printed
    report = json.loads((corpus / "report-train.json").read_text())
    assert {item["id"]: item["reason"] for item in report["bad"]} == bad
    assert all(Path(item["path"]).exists() and item["id"] in item["path"] for item in report["bad"])
    assert report["converted"]["mixed_to_mono"] == 1 and report["converted"]["rate_44100_hz"] == 1
    index = LatentCache(here / "cache" / "train").index
    encoded = {index.clip_ids[number] for number in range(len(index.clip_ids))}
    assert {"stereo", "caf\\xe9"} <= encoded and len(encoded) == len(index) == 22 and not bad.keys() & encoded
    assert cli.main(["fit", "--config", str(path)]) == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes of a file fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more(world: World, config: Path, here: Path, capsys: Capture) -> None:
    with largest_file(200_000):
        shown = fails(capsys, "fit", "--config", config)
    assert "last.ckpt: could not be written" in shown
    folder = here / "lightning_logs" / "bad" / "version_0" / "checkpoints"
    assert list(folder.iterdir()) == [], "half a checkpoint"
    with largest_file(30_000):
        shown = fails(capsys, "generate", "a tune", "--model", world.bundle, "--steps", "1", "--out", "tune.wav")
    assert "tune.wav: could not be written" in shown and not (here / "tune.wav").exists()
    with largest_file(2_000):
        shown = fails(capsys, "prepare", "latents", "--config", config, "--cache-dir", "cache")
    assert "could not be written" in shown and "cache" in shown
    with largest_file(30_000):
        shown = fails(capsys, "prepare", "demo", "--out", "demo", "--tracks", "1", "--workers", "1")
    assert "demo" in shown and "ulimit -f" in shown and not list((here / "demo").rglob("*.flac"))
