"""From the original files to a distilled model by the paper's experiment, in the release's geometry and the paper's."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from original_files import small_files
from timm.models.vision_transformer import VisionTransformer

from musiccm import cli
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.tagger import Tagger, TaggerConfig
from musiccm.pipeline import Pipeline

from .conftest import CLIP_SAMPLES, REPOSITORY, World, checkpoints, evaluation

FRAMES = CLIP_SAMPLES // 160

pytestmark = pytest.mark.e2e


def teacher(folder: Path, paper: bool) -> Path:
    files = small_files(folder / "files", paper)
    vit = VisionTransformer(img_size=(FRAMES, 128), patch_size=16, in_chans=1, num_classes=0, global_pool="avg",
                            fc_norm=False, embed_dim=64, depth=4, num_heads=1)
    torch.save({"model": vit.state_dict()}, folder / "audiomae.pth")
    out = folder / "teacher"
    shape = ["--head-channels", "16", "--mel-frames", str(FRAMES)]
    assert cli.main(["convert", *files.arguments, *shape, "--weights", "ema",
                     "--audiomae", str(folder / "audiomae.pth"), "--out", str(out)]) == 0
    # a judge, for the published ones need weights that are not ours to have
    tags = ["drums:none", "drums:rock", "instrument:organ", "instrument:piano"]
    save_part(out, "evaluators/tagger", Tagger(TaggerConfig(tags=tags, n_mels=128 if paper else 64)))
    return out


def write_experiment(world: World, here: Path, bundle: Path, callbacks: list[dict]) -> Path:
    experiment = {
        "base": str(REPOSITORY / "experiments" / "musiccm.yaml"),
        "experiment": "small",
        "trainer": {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_steps": 2,
                    "log_every_n_steps": 1, "val_check_interval": 2, "enable_progress_bar": False,
                    "callbacks": callbacks},
        "model": {"init_args": {"bundle": str(bundle), "distillation": {"warm_start_steps": 1},
                                "adversarial": {"start_step": 1, "crop_frames": 8},
                                "optimization": {"warmup_steps": 1}}},
        "data": {"init_args": {
            "corpora": [{"layout": "audiostock", "root": str(world.corpus)}], "cache_dir": str(here / "latents"),
            "clip_samples": CLIP_SAMPLES, "windows_per_track": 1, "batch_size": 4, "eval_batch_size": 4,
            "num_workers": 0, "val_clips": 2,
        }},
    }
    path = here / "small.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def test_the_papers_geometry_is_learned_from(world: World, here: Path) -> None:
    """128 bins, a VAE that shrinks by 8, 16 channels: one step of every kind."""
    bundle = teacher(here, paper=True)
    made = Bundle.from_pretrained(bundle)
    assert made.latent_shape() == (16, FRAMES // 8, 16) and made.mel.n_mels == 128
    path = write_experiment(world, here, bundle, [checkpoints(1)])
    assert cli.main(["prepare", "latents", "--config", str(path)]) == 0
    assert cli.main(["fit", "--config", str(path), "--trainer.val_check_interval", "100"]) == 0
    (last,) = (here / "lightning_logs" / "small").rglob("last.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    before = made.unet.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    moved = [name for name in before if not torch.equal(before[name], state[f"student.{name}"])]
    assert len(moved) > 0.9 * len(before)


def test_convert_fit_resume_test_export_generate(world: World, here: Path) -> None:
    bundle = teacher(here, paper=False)
    assert Bundle.from_pretrained(bundle).latent_shape() == (8, FRAMES // 4, 16)
    path = write_experiment(world, here, bundle, [checkpoints(1), evaluation()])
    assert cli.main(["prepare", "latents", "--config", str(path)]) == 0
    assert cli.main(["fit", "--config", str(path)]) == 0
    assert cli.main(["fit", "--config", str(path), "--trainer.max_steps", "3", "--ckpt_path", "newest"]) == 0
    assert cli.main(["test", "--config", str(path), "--ckpt_path", "newest"]) == 0
    version = max((here / "lightning_logs" / "small").glob("version_*"))
    rows = json.loads((version / "results.json").read_text())["rows"]
    assert {(row["model"], row["steps"]) for row in rows} == {("floor", 0)} | {
        (m, s) for m in ("teacher", "student") for s in (1, 2)}
    last = max((here / "lightning_logs" / "small").rglob("last.ckpt"), key=lambda found: found.stat().st_mtime)
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 3 and any(name.startswith("discriminator.") for name in state["state_dict"])
    assert cli.main(["export", "--checkpoint", str(last), "--out", str(here / "student"), "--base", "../teacher"]) == 0
    pipeline = Pipeline.from_pretrained(here / "student")
    assert pipeline.is_student and pipeline(["slow organ chords"], steps=1).shape == (1, CLIP_SAMPLES)
    assert tuple(pipeline.bundle.unet.config.attention_head_dim) == (2, 4)
