"""`musiccm prepare demo` and `musiccm prepare latents`, from the command line to latents that can be decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from musiccm.audio import LogMel, fixed_window, read_audio
from musiccm.cli import main
from musiccm.data.module import MusicDataModule
from musiccm.locks import locked_folder
from musiccm.models.bundle import Bundle
from tests.leftovers import leave_half_file
from tests.tiny_bundle import build_random_bundle

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SAMPLES = 8 * 16 * 160  # what the tiny bundle's U-Net takes: 1.28 s


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert main(["prepare", "demo", "--out", str(folder / "corpus"), "--tracks", "12", "--test-tracks", "2",
                 "--validation-tracks", "3", "--seed", "5", "--workers", "1"]) == 0
    build_random_bundle(folder / "bundle", evaluators=False)
    data = {"root": str(folder / "corpus"), "kind": "latent", "bundle": str(folder / "bundle"), "batch_size": 4,
            "cache_dir": str(folder / "latents"), "clip_samples": SAMPLES, "val_clips": 2, "windows_per_track": 2,
            "demo_corpora": [str(folder / "corpus")]}
    (folder / "x.yaml").write_text(yaml.safe_dump({"data": {"class_path": "musiccm.data.module.MusicDataModule",
                                                            "init_args": data}}))
    return folder


def test_demo_corpus_goes_where_the_experiment_reads_it(world, capsys):
    before = sorted(path.name for path in (world / "corpus" / "train").iterdir())
    again = ["--tracks", "12", "--test-tracks", "2", "--validation-tracks", "3", "--workers", "1"]
    assert main(["prepare", "demo", "--config", str(world / "x.yaml"), "--seed", "5", *again]) == 0
    assert f"{world / 'corpus'}: the demo corpus is complete" in capsys.readouterr().out
    assert sorted(path.name for path in (world / "corpus" / "train").iterdir()) == before
    assert main(["prepare", "corpus", "--config", str(world / "x.yaml"), "--seed", "5", *again]) == 0
    assert f"{world / 'corpus'}: the demo corpus is complete" in capsys.readouterr().out
    (world / "rootless.yaml").write_text("data: {class_path: musiccm.data.module.MusicDataModule, init_args: {}}")
    assert main(["prepare", "demo", "--config", str(world / "rootless.yaml"), *again]) == 2
    assert "rootless.yaml: expected data.init_args.root" in capsys.readouterr().err
    assert main(["prepare", "demo", *again]) == 2
    assert "--out --config is required" in capsys.readouterr().err


def arguments(world: Path) -> dict:
    return yaml.safe_load((world / "x.yaml").read_text())["data"]["init_args"]


def test_latents_equal_those_encoded_from_the_waveforms(world, capsys):
    command = ["prepare", "latents", "--config", str(world / "x.yaml"), "--batch-size", "5"]
    assert main([*command, "--split", "train"]) == 0
    assert sorted(p.name for p in Path(arguments(world)["cache_dir"]).iterdir() if p.is_dir()) == ["train"]
    assert main(command) == 0
    data = MusicDataModule(**arguments(world))
    data.setup("test")
    bundle = Bundle.from_pretrained(world / "bundle")
    cache, conditioner = data.latent_cache("train"), bundle.conditioner()
    assert len(cache) == 30 and len(data.latent_cache("test")) == 4
    row = 7  # the last window of the fourth track
    clip = data.clips("train")[3]
    index = cache.index
    assert index.id(row, 3) == f"{clip.id}@1" and index.starts_N[row] == clip.audio.frames - SAMPLES
    waveform = fixed_window(read_audio(clip.path)[0], SAMPLES, int(index.starts_N[row]))[None]
    with torch.no_grad():
        mean, std = bundle.codec("none").encode(LogMel(bundle.mel)(waveform))
        audio, text = conditioner.audio(waveform, 16000), conditioner.text(clip.captions)
    rows = np.asarray([row])
    torch.testing.assert_close(cache.moments(rows)[0], mean, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(cache.moments(rows)[1], std, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(cache.audio(rows), audio, atol=1e-4, rtol=0)
    numbers = np.arange(index.caption_ends_P1[3], index.caption_ends_P1[4])
    torch.testing.assert_close(cache.text(numbers), text, atol=1e-4, rtol=0)
    # the demo's clips for validation are tracks of their own
    assert (len(data.waveforms("train")), len(data.waveforms("val"))) == (12, 2)
    batch = next(iter(data.train_dataloader()))
    assert batch.latents_BCTF.shape == (4, 4, 8, 4) and batch.text_BD.shape == batch.audio_BD.shape == (4, 32)


def test_a_changed_vae_makes_the_cache_stale(world, capsys):
    assert main(["prepare", "latents", "--config", str(world / "x.yaml")]) == 0
    build_random_bundle(world / "other", seed=1, evaluators=False)
    assert main(["prepare", "latents", "--config", str(world / "x.yaml"), "--bundle", str(world / "other")]) == 2
    message = capsys.readouterr().err
    assert "model is" in message and "--overwrite" in message and "Traceback" not in message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "encoding.json"}  # which says how long it took


def test_latents_and_index_are_the_same_bytes_twice(world, tmp_path):
    latents = ["prepare", "latents", "--config", str(world / "x.yaml"), "--shard-size", "5", "--cache-dir"]
    index = ["prepare", "index", "--root", str(world / "corpus" / "train"), "--out"]
    for name, workers in (("first", 1), ("second", 3)):
        assert main([*latents, str(tmp_path / f"latents-{name}")]) == 0
        assert main([*index, str(tmp_path / f"index-{name}"), "--workers", str(workers)]) == 0
    for kind, lost in (("latents", "train/shard-00001.safetensors"), ("index", "rows-00000.safetensors")):
        first, second = tmp_path / f"{kind}-first", tmp_path / f"{kind}-second"
        expected = contents(first)
        assert len(expected) >= 4 and contents(second) == expected
        # As a kill leaves it: gone on with, it is the same again.
        (second / lost).unlink()
        leave_half_file((second / lost).parent)
        assert main([*(latents if kind == "latents" else index), str(second)]) == 0
        assert contents(second) == expected


def test_a_second_process_is_told_who_the_first_is(world, tmp_path, capsys):
    commands = {
        world / "corpus": ["prepare", "demo", "--out", str(world / "corpus"), "--tracks", "12", "--seed", "5"],
        tmp_path / "latents": ["prepare", "latents", "--config", str(world / "x.yaml"), "--cache-dir",
                               str(tmp_path / "latents"), "--overwrite"],
        tmp_path / "index": ["prepare", "index", "--root", str(world / "corpus" / "train"), "--out",
                             str(tmp_path / "index"), "--overwrite"],
    }
    for folder, command in commands.items():
        with locked_folder(folder):
            before = contents(folder)
            assert main(command) == 2
            assert f"{folder}: in use by `" in (shown := capsys.readouterr().err) and "Traceback" not in shown
            assert contents(folder) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "expected"), [
    ({"cache_dir": None}, "cache_dir"),
    ({"root": "/nowhere"}, "/nowhere"),
    ({"bundle": "/nowhere"}, "/nowhere"),
    ({"clip_samples": 8000}, "20480"),
    ({"colour": "red"}, "colour"),
])
def test_bad_settings_are_named(world, tmp_path, capsys, change, expected):
    config = {"data": {"init_args": {**arguments(world), "cache_dir": str(tmp_path / "cache"), **change}}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    assert main(["prepare", "latents", "--config", str(tmp_path / "bad.yaml")]) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message


def test_demo_corpus_is_read_back_with_its_attributes(world):
    data = MusicDataModule(**{**arguments(world), "kind": "waveform"})
    data.setup("fit")
    clip = data.train_clips[0]
    label = json.loads((world / "corpus" / "label" / f"{clip.id}.json").read_text())
    assert clip.attributes == label["original_data"]["attributes"] and clip.captions == label["text"]
    assert {"instrument", "drums", "texture", "tempo"} <= set(data.vocabulary.groups)


def test_a_combined_experiment_is_prepared_from_nothing(world, tmp_path, capsys):
    corpora = [{"layout": "audiostock", "root": str(world / "corpus"), "weight": 2},
               {"layout": "magnatagatune", "root": str(tmp_path / "mtat"), "weight": 1}]
    settings = {**arguments(world), "corpora": corpora, "cache_dir": str(tmp_path / "latents")}
    del settings["root"]
    config = tmp_path / "both.yaml"
    config.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    tracks = ["--tracks", "13", "--test-tracks", "2", "--seed", "9", "--workers", "1"]
    mtat = ["--layout", "magnatagatune", *tracks]
    assert main(["prepare", "demo", *mtat, "--config", str(config)]) == 2  # the experiment does not say that it is it
    assert not (tmp_path / "mtat").exists() and "demo_corpora lists, found 0" in capsys.readouterr().err
    settings["demo_corpora"] = [str(tmp_path / "mtat")]
    config.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    assert main(["prepare", "demo", *mtat, "--config", str(config)]) == 0
    (broken,) = (tmp_path / "mtat" / "7").glob("*.mp3")
    broken.write_bytes(b"")
    assert main(["prepare", "latents", "--config", str(config), "--strict"]) == 2
    assert f"{broken}: zero_byte" in capsys.readouterr().err
    settings["max_bad_fraction"] = 0.1
    config.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    assert main(["prepare", "latents", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "11 of 12 audio files can be used; left out: 1 zero_byte" in printed and "mtat/test: 2 of 2" in printed
    bad = json.loads((tmp_path / "mtat" / "report-train.json").read_text())["bad"]
    assert [(item["path"], item["reason"]) for item in bad] == [(str(broken), "zero_byte")]
    data = MusicDataModule(**settings)
    data.setup("fit")
    names = [name.split("/")[0] for batch in data.train_dataloader() for name in batch.ids]
    assert len(names) == 44 and abs(names.count("audiostock") - 30) <= 1
    assert main(["prepare", "demo", "--config", str(world / "x.yaml"), "--layout", "magnatagatune"]) == 2
    assert "one corpus in magnatagatune's layout" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "corpus"])
@pytest.mark.parametrize("name", sorted(path.relative_to(EXPERIMENTS).as_posix() for path in EXPERIMENTS.rglob("*.yaml")
                                        if path.parent.name != "strategies"))
def test_the_demo_corpus_is_written_only_where_an_experiment_says_that_it_reads_it(
    command, name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr("musiccm.data.demo.corpus.write_corpus", lambda root, *a, **k: written.append(str(root)))
    code = main(["prepare", command, "--config", str(EXPERIMENTS / name)])
    expected = {"demo.yaml": "data/demo", "demo_long.yaml": "data/demo", "dmd2.yaml": "data/demo",
                "student_dmd2.yaml": "data/demo", "smoke.yaml": "data/smoke",
                "tta/clap_tuning_demo.yaml": "data/demo", "tta/demo.yaml": "data/demo-events",
                "melody/demo.yaml": "data/demo", "melody/rows.yaml": "data/demo",
                "melody/student_melody.yaml": "data/demo", "melody/dmd2.yaml": "data/demo",
                **{f"tta/ablations/{path.name}": "data/demo-events"
                   for path in (EXPERIMENTS / "tta/ablations").glob("*.yaml")},
                **{f"ablations/{ablation}.yaml": "data/demo" for ablation in (
                    "adversarial_clap", "discriminator_half_clip", "discriminator_whole_clip", "no_adversarial",
                    "paper_recipe", "paper_recipe_epsilon")},
                **{f"objectives/{path.name}": "data/demo" for path in (EXPERIMENTS / "objectives").glob("*.yaml")}}
    assert (code, written) == ((0, [expected[name]]) if name in expected else (2, []))
    assert not list(tmp_path.rglob("*")), "something was written"
    message = capsys.readouterr().err
    if name == "tta/stages/text.yaml" or name.startswith("tta/unet_"):  # which read captions alone, and nothing
        assert "data.init_args.root, the folder of the corpus" in message
    elif name not in expected and command == "corpus":
        folders = (["data/second-corpus"] if name == "stages/clap_second.yaml" else ["data/bundle-corpus"]
                   if name.startswith("stages/") else ["data/melody-corpus"]
                   if name.startswith("melody/stages/") else ["data/events-corpus"]
                   if name.startswith(("tta/stages/", "tta/student_tango")) else ["data/audiocaps"]
                   if name.startswith(("tta/audiocaps", "tta/consistencytta", "tta/clap_tuning.yaml"))
                   else ["data/mtg-jamendo"]
                   if name.startswith(("attm", "jamendo")) else ["data/audiostock", "data/magnatagatune"])
        assert all(f"{folder}: no such corpus folder; expected" in message for folder in folders)


def test_an_experiment_over_the_demos_with_a_root_of_its_own_is_not_the_demos(world, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"base": str(EXPERIMENTS / "demo.yaml"),
                                   "data": {"init_args": {"root": str(tmp_path / "mine")}}}))
    for command in ("demo", "corpus"):
        assert main(["prepare", command, "--config", str(own), "--tracks", "1"]) == 2
    assert not (tmp_path / "mine").exists()
    # the same experiment goes on once the music is there
    (tmp_path / "mine").symlink_to(world / "corpus")
    assert main(["prepare", "corpus", "--config", str(own)]) == 0
    assert "12 train clips, 2 test clips" in capsys.readouterr().out
