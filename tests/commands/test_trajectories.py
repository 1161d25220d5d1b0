"""`musiccm prepare trajectories`: paths that a teacher really takes, resumed to the bit, refused when stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from musiccm.audio.windows import keyed_generator
from musiccm.cli import main
from musiccm.commands import _trajectories
from musiccm.config import load_experiment
from musiccm.data.batch import TrajectoryBatch
from musiccm.data.module import MusicDataModule
from musiccm.diffusion import noise_process, with_guidance
from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Denoiser
from musiccm.systems.cmt import CMT, Paths
from musiccm.systems.settings import Distillation
from tests.data.small_corpus import write_corpus
from tests.tiny_bundle import build_random_bundle

SAMPLES = 8 * 16 * 160


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_corpus(folder / "corpus", train=12, test=2)
    build_random_bundle(folder / "bundle", evaluators=False)
    data = {"root": str(folder / "corpus"), "kind": "latent", "bundle": str(folder / "bundle"), "batch_size": 3,
            "cache_dir": str(folder / "latents"), "clip_samples": SAMPLES, "val_clips": 2, "seed": 4,
            "trajectories_dir": str(folder / "paths")}
    model = {"bundle": str(folder / "bundle"), "seed": 3,
             "distillation": {"prediction_type": "epsilon", "guidance_scale": 2.0},
             "paths": {"count": 14, "steps": 10, "points": 4}}
    write(folder / "x.yaml", data, model)
    assert main(["prepare", "latents", "--config", str(folder / "x.yaml")]) == 0
    assert prepare(folder) == 0
    return folder


def write(path: Path, data: dict[str, Any], model: dict[str, Any], kind: str = "musiccm.systems.cmt.CMT") -> Path:
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
               "max_steps": 3, "default_root_dir": str(path.parent)}
    path.write_text(yaml.safe_dump({
        "trainer": trainer, "model": {"class_path": kind, "init_args": model},
        "data": {"class_path": "musiccm.data.module.MusicDataModule", "init_args": data},
    }))
    return path


def changed(world: Path, out: Path, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Path:
    content = yaml.safe_load((world / "x.yaml").read_text())
    return write(out, content["data"]["init_args"] | (data or {}), content["model"]["init_args"] | (model or {}))


def prepare(world: Path, *more: str, config: Path | None = None) -> int:
    return main(["prepare", "trajectories", "--config", str(config or world / "x.yaml"), "--batch-size", "3",
                 "--shard-size", "8", *more])


def module(config: Path) -> MusicDataModule:
    data = MusicDataModule(**load_experiment(config)["data"]["init_args"])
    data.setup("fit")
    return data


def system(config: Path) -> CMT:
    given = load_experiment(config)["model"]["init_args"]
    return CMT(given["bundle"], Distillation(**given["distillation"]), Paths(**given["paths"]), seed=given["seed"])


def test_a_path_is_what_the_teachers_ddim_makes_of_its_noise_and_caption(world):
    """By DDIM's formula written out here, from the noise that the path's number is the key of."""
    data, bundle = module(world / "x.yaml"), Bundle.from_pretrained(world / "bundle")
    number = 11  # in the second file
    batch = data.trajectories().__getitems__([number])
    assert isinstance(batch, TrajectoryBatch) and batch.audio_BD is None
    assert batch.timesteps_P.tolist() == [999, 799, 499, 299]
    process = noise_process(bundle.scheduler_config)
    teacher = with_guidance(Denoiser(bundle.unet, process, "epsilon"), bundle.conditioner().text(batch.captions),
                            bundle.conditioner().null(1), 2.0)
    z = torch.randn(bundle.latent_shape(), generator=keyed_generator(3, "path", number))[None]
    seen = {}
    with torch.no_grad():
        for t in range(999, 0, -100):
            seen[t] = z
            a, s = (float(c(torch.tensor([t]))) for c in (process.alpha, process.sigma))
            x0 = teacher(z, torch.tensor([t]))
            if t == 99:
                break
            b, r = (float(c(torch.tensor([t - 100]))) for c in (process.alpha, process.sigma))
            z = b * x0 + r * (z - a * x0) / s
    expected = torch.stack([seen[t] for t in (999, 799, 499, 299)], 1)
    torch.testing.assert_close(batch.points_BPCTF, expected, atol=2e-3, rtol=2e-3)
    end = bundle.codec("none").denormalise(x0)
    torch.testing.assert_close(batch.latents_BCTF, end, atol=2e-3 * float(end.abs().max()), rtol=2e-3)


def test_captions_are_those_that_training_draws_and_none_is_of_a_validation_clip(world):
    data = module(world / "x.yaml")
    drawn = data.latents("train").__getitems__(data.training_items(14))
    batch = data.trajectories().__getitems__([(5, n) for n in range(14)])
    assert (batch.ids, batch.captions) == (drawn.ids, drawn.captions) and torch.equal(batch.text_BD, drawn.text_BD)
    held_out = {clip.id for clip in data.val_clips}
    assert held_out and not held_out & set(batch.ids)


def test_batches_are_paths_in_an_order_that_resumes(world):
    data = module(world / "x.yaml")
    whole = [batch.ids for batch in data.train_dataloader()]
    assert len(whole) == 14 // 3 and isinstance(next(iter(data.train_dataloader())), TrajectoryBatch)
    loader = module(world / "x.yaml").train_dataloader()
    iterator = iter(loader)
    next(iterator), next(iterator)
    again = module(world / "x.yaml").train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert [batch.ids for batch in again] == whole[2:]
    assert module(world / "x.yaml").val_dataloader().dataset[0].ids[0] in {clip.id for clip in data.val_clips}


def test_a_killed_run_goes_on_to_the_same_paths_and_more_can_be_asked_for(world, tmp_path):
    here = tmp_path / "paths"
    config = changed(world, tmp_path / "x.yaml", {"trajectories_dir": str(here)})
    assert prepare(world, config=config) == 0
    first, second = (here / f"shard-0000{n}.safetensors" for n in range(2))
    assert first.read_bytes() == (world / "paths" / first.name).read_bytes()
    kept = first.stat().st_mtime_ns
    before = second.read_bytes()
    second.unlink()
    with pytest.raises(MusiccmError, match="unfinished trajectories: 1 of 2 files are missing"):
        module(config)
    with locked_folder(here), pytest.raises(MusiccmError, match="being written by"):
        module(config)
    # other batches; float32 may round otherwise, float16 keeps less
    assert prepare(world, "--batch-size", "5", config=config) == 0
    assert first.stat().st_mtime_ns == kept
    new, old = load_file(second), load_file(world / "paths" / second.name)
    assert before == (world / "paths" / second.name).read_bytes()
    assert all(torch.allclose(new[name].float(), old[name].float(), atol=2e-2, rtol=1e-2) for name in old)

    more = changed(world, tmp_path / "more.yaml", {"trajectories_dir": str(here)},
                   {"paths": {"count": 17, "steps": 10, "points": 4}})
    with pytest.raises(MusiccmError, match=r"expected 17 trajectories \(paths.count\), found 14"):
        CMT.check_experiment({**load_experiment(more), "subcommand": "fit"})
    assert prepare(world, config=more) == 0 and first.stat().st_mtime_ns == kept
    assert len(load_file(here / "shard-00002.safetensors")["points"]) == 1


def test_the_folder_keeps_what_its_paths_took_over_runs(world, tmp_path, monkeypatch):
    """By a clock on which a path takes two seconds of two threads."""
    now = [0.0]
    roll = _trajectories.roll_out

    def roll_out(teacher, schedule, z, steps, kept):
        now[0] += 2 * len(z)
        return roll(teacher, schedule, z, steps, kept)

    monkeypatch.setattr(_trajectories, "roll_out", roll_out)
    monkeypatch.setattr(_trajectories, "time", SimpleNamespace(perf_counter=lambda: now[0],
                                                               process_time=lambda: 2 * now[0]))
    here = tmp_path / "paths"
    paths = {"steps": 10, "points": 4}
    few = changed(world, tmp_path / "few.yaml", {"trajectories_dir": str(here)}, {"paths": {"count": 10, **paths}})
    more = changed(world, tmp_path / "more.yaml", {"trajectories_dir": str(here)}, {"paths": {"count": 13, **paths}})
    assert prepare(world, config=few) == 0
    found = module(few).trajectories().cost
    assert (found.paths, found.seconds, found.processor_seconds) == (10, 20.0, 40.0) and found.device
    # a file that is lost and made again counts once, as do the two paths of a file that grows
    (here / "shard-00000.safetensors").unlink()
    assert prepare(world, config=more) == 0
    found = module(more).trajectories().cost
    assert (found.paths, found.seconds, found.processor_seconds) == (13, 26.0, 52.0)
    # a folder of an older version, whose first file went without
    index = json.loads((here / "index.json").read_text())
    del index["costs"]["0-8"]
    (here / "index.json").write_text(json.dumps(index))
    found = module(more).trajectories().cost
    assert (found.paths, found.seconds, found.processor_seconds, found.device) == (13, None, None, None)
    del index["costs"]
    (here / "index.json").write_text(json.dumps(index))
    assert module(more).trajectories().cost == found and prepare(world, config=more) == 0


def test_the_students_run_is_refused_before_anything_loads(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Bundle, "from_pretrained", lambda *a, **k: pytest.fail("the bundle was read"))
    cases = (
        ({"trajectories_dir": None}, {}, "data.init_args.trajectories_dir: this objective trains on trajectories"),
        ({}, {"distillation": {"guidance_scale": 3.0}}, "stale trajectories: guidance_scale is 2.0, expected 3.0"),
        ({}, {"paths": {"count": 14, "steps": 20, "points": 4}}, "steps is 10, expected 20"),
        ({}, {"seed": 9}, "noise is 3, expected 9"),
        ({"trajectories_dir": str(tmp_path / "none")}, {}, "run `musiccm prepare trajectories --config"),
    )
    for data, model, said in cases:
        config = changed(world, tmp_path / "y.yaml", data, model)
        with pytest.raises(MusiccmError, match=said):
            CMT.check_experiment({**load_experiment(config), "subcommand": "fit"})
        CMT.check_experiment({**load_experiment(config), "subcommand": "test"})  # which reads no paths
    assert main(["fit", "--config", str(config)]) == 2
    assert cases[-1][-1] in capsys.readouterr().err


def test_paths_of_another_teacher_or_other_captions_are_stale(world, tmp_path, capsys):
    build_random_bundle(tmp_path / "bundle", evaluators=False)
    (tmp_path / "bundle/unet/config.json").write_text((world / "bundle/unet/config.json").read_text() + "\n")
    theirs = system(changed(world, tmp_path / "x.yaml", model={"bundle": str(tmp_path / "bundle")}))
    theirs.trainer = SimpleNamespace(datamodule=module(world / "x.yaml"))
    with pytest.raises(MusiccmError, match="stale trajectories: teacher is 'U-Net .*', expected 'U-Net .*'\\. Make"):
        theirs.setup("fit")

    index = world / "paths" / "index.json"
    kept = index.read_text()
    try:
        found = json.loads(kept)
        found["key"]["trained"] = "x"
        index.write_text(json.dumps(found))
        with pytest.raises(MusiccmError, match="stale trajectories: trained is 'x'"):
            module(world / "x.yaml")
        assert prepare(world) == 2
        assert "holds trajectories of something else" in capsys.readouterr().err
    finally:
        index.write_text(kept)


@pytest.mark.parametrize("found", ["of another guidance", "of fewer paths", "damaged"])
def test_a_file_that_is_not_of_these_paths_is_named_and_made_anew(world, tmp_path, found):
    """As a copy of another folder leaves it, or a run that was killed while it made more paths than before."""
    here = tmp_path / "paths"
    shutil.copytree(world / "paths", here)
    count, scale, bad = 14, 2.0, here / "shard-00001.safetensors"
    if found == "damaged":
        bad.write_bytes(bad.read_bytes()[:7])
    elif found == "of fewer paths":  # the index was written, and the last file not yet
        count = 16
        index = json.loads((here / "index.json").read_text())
        (here / "index.json").write_text(json.dumps(index | {"paths": count}))
    else:
        index = json.loads((here / "index.json").read_text())
        index["key"]["guidance_scale"] = scale = 4.0
        (here / "index.json").write_text(json.dumps(index))
        bad = here / "shard-00000.safetensors"
    config = changed(world, tmp_path / "x.yaml", {"trajectories_dir": str(here)},
                     {"paths": {"count": count, "steps": 10, "points": 4},
                      "distillation": {"prediction_type": "epsilon", "guidance_scale": scale}})
    said = rf"{bad}: not what index.json .*guidance_scale {scale}, steps 10, .* `musiccm prepare trajectories"
    with pytest.raises(MusiccmError, match=said):
        CMT.check_experiment({**load_experiment(config), "subcommand": "fit"})
    assert prepare(world, config=config) == 0
    assert len(load_file(here / "shard-00001.safetensors")["points"]) == count - 8
    CMT.check_experiment({**load_experiment(config), "subcommand": "fit"})


def test_only_an_objective_that_trains_on_paths_has_them_made(world, tmp_path, capsys):
    content = yaml.safe_load((world / "x.yaml").read_text())
    model = {"bundle": str(world / "bundle")}
    other = write(tmp_path / "x.yaml", content["data"]["init_args"], model, "musiccm.systems.lcm.LCM")
    assert prepare(world, config=other) == 2
    assert "expected musiccm.systems.cmt.CMT" in capsys.readouterr().err
    with pytest.raises(MusiccmError, match="data.kind 'latent'"):
        MusicDataModule(root="x", trajectories_dir="y")


def test_a_run_trains_on_them_and_goes_on_in_the_middle_of_an_epoch(world, tmp_path):
    """Three steps, and two of which the third is done later, end in the same weights."""
    def fit(steps: int, begun: Path | None = None) -> tuple[Path, dict[str, Any]]:
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=steps, save_top_k=-1,
                                filename=f"{steps}-{begun is None}")
        trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, limit_val_batches=0, callbacks=[saver])
        trainer.fit(system(world / "x.yaml"), datamodule=module(world / "x.yaml"), ckpt_path=begun)
        path = tmp_path / f"{steps}-{begun is None}.ckpt"
        return path, torch.load(path, weights_only=True)

    _, through = fit(3)
    begun, _ = fit(2)
    _, resumed = fit(3, begun)
    assert resumed["student"]["paths.top_share"] == 0.5 and "trajectories" in resumed["training_data"]
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in through["state_dict"].items())
