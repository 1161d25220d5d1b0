"""Parts of MusicCM that an experiment gives by `class_path`."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule, Trainer
from test_extend import example
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.commands._imports import only_known_imports
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import noise_process
from musiccm.errors import MusiccmError
from musiccm.losses import distance
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Denoiser
from musiccm.systems.musiccm import MusicCM

YAML = """
class_path: musiccm.systems.musiccm.MusicCM
init_args:
  bundle: {bundle}
  teacher: {{class_path: two_teachers.TwoTeachers, init_args: {{first: {bundle}, second: {other}}}}}
  distillation:
    distance:
      class_path: musiccm.losses.perceptual.FeatureDistance
      init_args:
        network: {{class_path: musiccm.models.latent_features.DecodedFeatures, init_args: {{bundle: {bundle}}}}}
        weight: 0.5
  adversarial:
    features:
      class_path: musiccm.models.features.ViTFeatures
      init_args: {{config: {{frames: 64, bins: 64, patch_size: 16, width: 24, depth: 2, heads: 2}}}}
    loss: {{class_path: musiccm.losses.adversarial.NonSaturating}}
    head_width: 8
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return build_random_bundle(folder / "one", frames=4), build_random_bundle(folder / "two", frames=4, seed=1)


@pytest.fixture
def build(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds the system of the YAML, as LightningCLI does."""
    module = ModuleType("two_teachers")
    vars(module).update(example("two_teachers.py"))
    monkeypatch.setitem(sys.modules, "two_teachers", module)

    def built(**distance: Any) -> MusicCM:
        torch.manual_seed(0)
        content = yaml.safe_load(YAML.format(bundle=bundles[0], other=bundles[1]))
        content["init_args"]["distillation"]["distance"]["init_args"] |= distance
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningModule, "model")
        with only_known_imports(["two_teachers"]):  # whatever a command in this process has forbidden
            return parser.instantiate_classes(parser.parse_object({"model": content})).model

    return built


def fit(system: MusicCM, steps: int, ckpt_path: Path | None = None) -> Trainer:
    generator = torch.Generator().manual_seed(5)
    unit = torch.nn.functional.normalize(torch.randn(2, 32, generator=generator), dim=1)
    raw = torch.randn(2, *system.bundle.latent_shape(), generator=generator)
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)
    batch = LatentBatch(raw, unit, unit, ["a", "b"], ["x", "y"])
    trainer.fit(system, DataLoader([batch] * 2, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def test_a_run_takes_its_parts_from_the_experiment(build: Any, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    system = build()
    before = copy.deepcopy(system.state_dict())
    trainer = fit(system, 2)
    after = system.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {"student", "student_ema_target", "student_ema_slow", "discriminator"}
    assert system.frozen["features"].config.width == 24 and system.discriminator.heads
    # the loss of the heads at logits near 0 is that of two coins, for each of three features, and not the hinge's 2
    assert float(trainer.callback_metrics["train/loss_d"]) == pytest.approx(3 * 2 * 0.693, rel=0.35)

    z, t, cond = torch.randn(2, *system.bundle.latent_shape()), torch.tensor([259, 999]), torch.randn(2, 32)
    teachers = [Bundle.from_pretrained(path) for path in bundles]
    process = noise_process(teachers[0].scheduler_config)
    each = [Denoiser(b.unet, process, b.prediction_type)(z, t, cond) for b in teachers]
    torch.testing.assert_close(system.teacher(z, t, cond), (each[0] + each[1]) / 2)
    assert torch.equal(before["student.conv_in.weight"], teachers[0].unet.conv_in.weight)

    x, y = torch.randn(2, 2, *system.bundle.latent_shape())
    features = teachers[0].evaluators["audiomae"]
    codec = teachers[0].codec("original")
    pairs = zip(features(codec.decode_mel(x, None, 0)), features(codec.decode_mel(y, None, 0)), strict=True)
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean(1) for a, b in pairs]
    expected = distance(x, y).flatten(1).mean(1) + 0.5 * sum(2 - 2 * c for c in cosines)
    torch.testing.assert_close(system.distillation.distance(x, y), expected, rtol=1e-4, atol=1e-4)

    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if name.startswith("frozen")]
    fit(build(), 3, tmp_path / "run.ckpt")
    with pytest.raises(MusiccmError, match=r"distillation.distance: .*FeatureDistance.*'weight': 0.5.*'weight': 2.0"):
        fit(build(weight=2.0), 3, tmp_path / "run.ckpt")


@pytest.mark.slow
def test_a_checkpoint_knows_the_weights_of_what_it_was_trained_with(build: Any, tmp_path: Path) -> None:
    system = build()
    trainer = fit(system, 1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = build()
    with torch.no_grad():
        next(other.teacher.parameters()).add_(1.0)
    with pytest.raises(MusiccmError, match=r"init_args.teacher: it was trained with \{'class_path': 'two_teachers"):
        fit(other, 2, tmp_path / "run.ckpt")
