"""The MusicCM system: who learns from what, what the clock counts, what a checkpoint holds."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.errors import MusiccmError
from musiccm.models.features import ViTConfig, ViTFeatures
from musiccm.systems.checkpoint_fit import MEANING
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b"))


def make_batches(model: MusicCM, count: int, size: int = 2) -> list[LatentBatch]:
    generator = torch.Generator().manual_seed(5)
    width = model.conditioner.width

    def unit():
        return torch.nn.functional.normalize(torch.randn(size, width, generator=generator), dim=1)

    shape = (size, *model.bundle.latent_shape())
    return [
        LatentBatch(
            torch.randn(shape, generator=generator), unit(), unit(), [f"{i}-{j}" for j in range(size)], ["x"] * size
        )
        for i in range(count)
    ]


def make(bundle: str, **kwargs) -> MusicCM:
    torch.manual_seed(0)
    defaults = {
        "distillation": Distillation(warm_start_steps=1, curriculum=[Phase(1.0, 100, 1)]),
        "adversarial": Adversarial(crop_frames=4, head_width=8),
        "optimization": Optimization(lr=1e-3),
    }
    return MusicCM(bundle, **{**defaults, **kwargs})


def fit(model, batches, tmp_path, steps, ckpt_path=None, callbacks=(), **options):
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=list(callbacks), enable_checkpointing=bool(callbacks),
        **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_a_run_moves_student_averages_and_heads_and_nothing_frozen(bundle, tmp_path):
    model = make(bundle)
    before = copy.deepcopy(model.state_dict())
    trainer = fit(model, make_batches(model, 3), tmp_path, 3)
    assert changed(before, model.state_dict()) == {
        "student", "student_ema_target", "student_ema_slow", "discriminator"
    }  # fmt: skip
    assert trainer.global_step == 3


def test_generator_gradient_stays_out_of_the_heads_and_the_frozen_parts(bundle):
    model = make(bundle)
    batch = make_batches(model, 1)[0]
    z0 = model.codec.normalise(batch.latents_BCTF)
    x0_pred = model.consistency("online")(z0, torch.tensor([499, 999]), batch.text_BD)
    judged = model._losses(z0, x0_pred, batch.text_BD, torch.Generator().manual_seed(0))
    judged["loss_g"].backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert not any(p.requires_grad for p in model.frozen.parameters())
    assert sum(float(p.grad.abs().sum()) for p in model.student.parameters() if p.grad is not None) > 0


def test_a_distilled_student_cannot_teach(bundle, tmp_path):
    student = Path(shutil.copytree(bundle, tmp_path / "student"))
    config = student / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "LCMScheduler"}))
    with pytest.raises(MusiccmError, match="distilled student"):
        MusicCM(str(student))


@pytest.mark.parametrize(
    "setting", [{"features": "vgg"}, {"weight": -1.0}, {"crop_frames": 0}, {"lr": 0.0}, {"start_step": -1}]
)
def test_adversarial_settings_are_checked_at_once(bundle, setting):
    with pytest.raises(MusiccmError, match=f"adversarial.{next(iter(setting))}"):
        MusicCM(bundle, adversarial=Adversarial(**setting))


def test_each_side_is_looked_at_once(bundle):
    model = make(bundle)
    batch = make_batches(model, 1)[0]
    z0 = model.codec.normalise(batch.latents_BCTF)
    features, looks = model.frozen["features"], []
    run = features._run
    features._run = lambda mel: looks.append(mel) or run(mel)
    judged = model._losses(z0, 0.5 * z0, batch.text_BD, torch.Generator().manual_seed(0))
    assert len(looks) == 2
    real_mel = looks[0]
    assert torch.equal(judged["cond"], torch.cat([batch.text_BD, features.embed(real_mel)], dim=1))
    assert all(torch.equal(a, b) for a, b in zip(judged["real"], features(real_mel), strict=True))


def test_discriminator_gradient_stays_out_of_the_student(bundle):
    from musiccm.losses.adversarial import discriminator_loss

    model = make(bundle)
    batch = make_batches(model, 1)[0]
    z0 = model.codec.normalise(batch.latents_BCTF)
    x0_pred = model.consistency("online")(z0, torch.tensor([499, 999]), batch.text_BD)
    judged = model._losses(z0, x0_pred, batch.text_BD, torch.Generator().manual_seed(0))
    loss, _ = discriminator_loss(model.discriminator, judged["real"], judged["fake"], judged["cond"])
    loss.backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for n, p in model.discriminator.named_parameters() if "original" in n)


def test_distillation_loss_is_zero_where_student_and_target_agree(bundle):
    """An oracle: make every network answer the clean latents; then targets and predictions are those latents."""
    model = make(bundle)
    batch = make_batches(model, 1, size=4)[0]
    z0 = model.codec.normalise(batch.latents_BCTF)

    class Oracle(torch.nn.Module):
        def forward(self, z, t, cond):
            return z0.repeat(len(z) // len(z0), 1, 1, 1)

    model.frozen["teacher"] = Oracle()
    model.consistency = lambda which="slow": Oracle()
    model.trainer = type("T", (), {"max_steps": 10, "max_epochs": -1, "global_step": 5})()
    _, loss, parts = model.distil(z0, batch.text_BD, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert parts["loss_distil"] == loss


def test_without_adversarial_weight_there_is_no_discriminator(bundle, tmp_path):
    model = make(bundle, adversarial=Adversarial(weight=0.0))
    fit(model, make_batches(model, 2), tmp_path, 2)
    assert model.discriminator is None and "features" not in model.frozen


@pytest.mark.parametrize("features", ["audiomae", "clap"])
def test_both_feature_networks_train(bundle, tmp_path, features):
    model = make(bundle, adversarial=Adversarial(features=features, head_width=8))
    trainer = fit(model, make_batches(model, 3), tmp_path, 3)
    assert {"train/loss_g", "train/loss_d", "train/r1", "train/score_real"} <= set(trainer.callback_metrics)


def test_accumulation_steps_once_in_n_batches(bundle, tmp_path):
    model = make(bundle, optimization=Optimization(lr=1e-3, accumulate=2))
    trainer = fit(model, make_batches(model, 8), tmp_path, 4)
    assert trainer.global_step == 4 and model.batches_seen == 8


def test_progress_counts_steps_and_not_batches_whatever_bounds_the_run(bundle, tmp_path):
    model = make(bundle, optimization=Optimization(accumulate=2), adversarial=Adversarial(weight=0.0))
    seen = []
    model._log_parts = lambda *_: seen.append((model.global_step, model._progress()))
    fit(model, make_batches(model, 6), tmp_path, 100, max_epochs=1)
    assert model.global_step == 3
    # The warm start takes one of the three steps.
    assert seen == [(0, 0.0), (1, 0.0), (1, 0.0), (2, 0.5), (2, 0.5), (3, 1.0)]


def test_a_run_without_an_end_is_refused(bundle, tmp_path):
    model = make(bundle)
    with pytest.raises(MusiccmError, match="trainer.max_steps"):
        fit(model, make_batches(model, 1), tmp_path, -1, max_epochs=-1, max_time="00:00:01:00")


def test_float16_is_refused(bundle):
    model = make(bundle)
    model.trainer = type("T", (), {"precision": "16-mixed"})()
    with pytest.raises(MusiccmError, match="bf16-mixed"):
        model.on_fit_start()


def test_the_logged_learning_rate_is_the_one_that_the_step_used(bundle, tmp_path):
    model = make(bundle, optimization=Optimization(lr=0.8, warmup_steps=4), adversarial=Adversarial(weight=0.0))
    logged = []
    model._log_parts = lambda parts, lr, *_: logged.append((lr, model.optimizers().param_groups[0]["lr"]))
    fit(model, make_batches(model, 3), tmp_path, 3)
    assert logged == [(pytest.approx(lr), pytest.approx(lr)) for lr in (0.2, 0.4, 0.6)]


def test_gradients_are_clipped(bundle, tmp_path):
    model = make(bundle, optimization=Optimization(lr=1.0, clip_norm=1e-12), adversarial=Adversarial(weight=0.0))
    before = copy.deepcopy(model.student.state_dict())
    model.configure_optimizers = lambda: [torch.optim.SGD(model.student.parameters(), lr=1.0)]
    fit(model, make_batches(model, 1), tmp_path, 1)
    moved = sum(float((model.student.state_dict()[n] - before[n]).square().sum()) for n in before) ** 0.5
    assert moved < 1e-9


def test_checkpoint_leaves_the_frozen_parts_out_and_resumes_to_the_same_weights(bundle, tmp_path):
    through = make(bundle)
    batches = make_batches(through, 4)
    fit(through, batches, tmp_path, 4)

    first = make(bundle)
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(first, batches, tmp_path, 2, callbacks=[saver])
    checkpoint = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if name.startswith("frozen")]

    second = make(bundle)
    # A plain loader starts its epoch anew; the two batches that were trained on are left out by hand.
    fit(second, batches[2:] + batches[:2], tmp_path, 4, ckpt_path=str(tmp_path / "step=2.ckpt"))
    expected, found = through.state_dict(), second.state_dict()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_a_checkpoint_from_between_two_batches_of_a_step_resumes_to_the_same_weights(bundle, tmp_path):
    class SaveAfterThree(Callback):
        def on_train_batch_end(self, trainer, model, *_):
            if model.batches_seen == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    through = make(bundle, optimization=Optimization(lr=1e-3, accumulate=2))
    batches = make_batches(through, 6)
    fit(through, batches, tmp_path, 3, callbacks=[SaveAfterThree()])

    second = make(bundle, optimization=Optimization(lr=1e-3, accumulate=2))
    fit(second, batches[3:] + batches[:3], tmp_path, 3, ckpt_path=str(tmp_path / "middle.ckpt"))
    assert second.batches_seen == 6
    expected, found = through.state_dict(), second.state_dict()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def saved(model: MusicCM) -> dict:
    checkpoint = {"state_dict": dict(model.state_dict())}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.mark.parametrize(("weight", "other", "said"), [(1.0, 0.0, "lacks"), (0.0, 1.0, "holds")])
def test_a_checkpoint_with_and_without_heads_is_refused_by_key(bundle, weight, other, said):
    made = [make(bundle, adversarial=Adversarial(weight=w, crop_frames=4, head_width=8)) for w in (weight, other)]
    with pytest.raises(MusiccmError, match=f"adversarial.weight: it {said} the weights of a discriminator"):
        made[0].on_load_checkpoint(saved(made[1]))


def test_a_checkpoint_of_another_unet_is_refused_by_key_and_weight(bundle, tmp_path):
    model = make(bundle)
    state = saved(model)
    state["state_dict"]["student.conv_in.weight"] = torch.zeros(8, 4, 3, 3)
    with pytest.raises(MusiccmError, match=r"bundle: 1 weights of the student .*conv_in.weight, \(8, 4, 3, 3\)"):
        model.on_load_checkpoint(state)
    narrower = make(bundle, adversarial=Adversarial(crop_frames=4, head_width=4))
    with pytest.raises(MusiccmError, match="adversarial.head_width"):
        narrower.on_load_checkpoint(saved(model))


OTHERS = {
    "distillation.prediction_type": {"distillation": Distillation(prediction_type="epsilon")},
    "distillation.grid_points": {"distillation": Distillation(grid_points=25, curriculum=[Phase(1.0, 40)])},
    "distillation.target_ema_decay": {"distillation": Distillation(target_ema_decay=0.9)},
    "distillation.eval_ema_decay": {"distillation": Distillation(eval_ema_decay=0.9)},
    "distillation.guidance_scale": {"distillation": Distillation(guidance_scale=2.0)},
    "adversarial.features": {"adversarial": Adversarial(features="clap")},
    "optimization.accumulate": {"optimization": Optimization(accumulate=2)},
    "seed": {"seed": 1},
    "bundle": {},
}


PLAIN = {"distillation": Distillation(), "adversarial": Adversarial(weight=0.0), "optimization": Optimization()}


@pytest.fixture(scope="module")
def plain_checkpoint(bundle):
    """Of a recipe without heads; one of the same recipe takes it."""
    checkpoint = saved(make(bundle, **PLAIN))
    make(bundle, **PLAIN).on_load_checkpoint({**checkpoint, "state_dict": dict(checkpoint["state_dict"])})
    return checkpoint


@pytest.mark.parametrize("key", OTHERS)
def test_a_checkpoint_of_another_recipe_is_refused_by_key_and_values(bundle, plain_checkpoint, tmp_path, key):
    plain, checkpoint = PLAIN, plain_checkpoint
    if key == "adversarial.features":
        plain = {**PLAIN, "adversarial": Adversarial()}
        checkpoint = saved(make(bundle, **plain))
    # Another teacher of the same shape.
    elsewhere = str(build_random_bundle(tmp_path / "b", seed=1)) if key == "bundle" else bundle
    if key == "adversarial.features":  # heads on features of the same widths
        checkpoint["student"] = {**checkpoint["student"], key: "clap"}
        other = make(elsewhere, **plain)
    else:
        other = make(elsewhere, **plain | OTHERS[key])
    fitting, testing = (
        SimpleNamespace(ckpt_path="run.ckpt", state=SimpleNamespace(fn=fn))
        for fn in (TrainerFn.FITTING, TrainerFn.TESTING)
    )
    other.trainer = fitting
    with pytest.raises(MusiccmError, match=f"run.ckpt does not fit .*\n.*init_args.{key}: it was trained with"):
        other.on_load_checkpoint({**checkpoint, "state_dict": dict(checkpoint["state_dict"])})
    # To test a student, only what its weights mean must agree.
    other.trainer = testing
    if key in MEANING:
        with pytest.raises(MusiccmError, match=key):
            other.on_load_checkpoint({**checkpoint, "state_dict": dict(checkpoint["state_dict"])})
    else:
        other.on_load_checkpoint({**checkpoint, "state_dict": dict(checkpoint["state_dict"])})


@pytest.mark.parametrize(("processes", "size", "warns"), [(1, 16, False), (2, 8, False), (2, 16, True)])
def test_another_global_batch_is_said(bundle, caplog, processes, size, warns):
    model = make(bundle)

    def on(processes, size):
        return SimpleNamespace(datamodule=SimpleNamespace(batch_size=size), world_size=processes, ckpt_path="run.ckpt",
                               state=SimpleNamespace(fn=TrainerFn.FITTING))

    model.trainer = on(1, 16)
    checkpoint = saved(model)
    model.trainer = on(processes, size)
    model.on_load_checkpoint(checkpoint)
    assert bool(re.search("16 clips a step .* has 32", caplog.text)) == warns


@pytest.mark.parametrize(("seed", "said"), [(3, False), (4, True)])
def test_other_training_data_is_said(bundle, caplog, seed, said):
    model = make(bundle)

    def on(seed):
        data = SimpleNamespace(training_key=lambda: {"corpora": "abc", "seed": seed})
        return SimpleNamespace(datamodule=data, world_size=1, ckpt_path="run.ckpt",
                               state=SimpleNamespace(fn=TrainerFn.FITTING))

    model.trainer = on(3)
    checkpoint = saved(model)
    model.trainer = on(seed)
    model.on_load_checkpoint(checkpoint)
    assert ("run.ckpt was trained on other data (seed: 3, here 4)" in caplog.text) == said


def test_a_curriculum_must_cover_the_run():
    with pytest.raises(MusiccmError, match="until"):
        Distillation(curriculum=[Phase(0.5)]).check()


@pytest.mark.parametrize(
    "wrong",
    [{"solver": "euler"}, {"distance": "l1"}, {"timestep_mode": "random"}, {"tail": 2.0}, {"prediction_type": "v"},
     {"audio_condition_share": -1.0}, {"curriculum": [Phase(jumps="all")]}, {"curriculum": [Phase(jumps=0)]}],
)  # fmt: skip
def test_a_wrong_setting_is_refused_before_the_run_and_not_after_the_warm_start(wrong):
    with pytest.raises(MusiccmError, match=f"distillation.{next(iter(wrong))}"):
        Distillation(**wrong).check()


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"lr": -1.0}, {"clip_norm": 0.0}])
def test_a_wrong_optimization_is_refused(wrong):
    with pytest.raises(MusiccmError, match=f"optimization.{next(iter(wrong))}"):
        Optimization(**wrong).check()


def test_phases_follow_progress():
    settings = Distillation(curriculum=[Phase(0.5, 100), Phase(1.0, 20)])
    assert [settings.phase(p).skip for p in (0.0, 0.49, 0.5, 1.0)] == [100, 100, 20, 20]


def test_a_crop_must_fill_a_patch_of_the_judge(bundle, tmp_path):
    """Refused before training, and not at `start_step`: here a latent frame is 16 mel frames, and a patch made 32."""
    big = Path(shutil.copytree(bundle, tmp_path / "big"))
    features = ViTFeatures(ViTConfig(frames=128, bins=64, patch_size=32, width=32, depth=2, heads=2))
    features.save_pretrained(big / "evaluators" / "audiomae")
    with pytest.raises(MusiccmError, match="adversarial.crop_frames: expected at least 2 .* found 1"):
        MusicCM(str(big), adversarial=Adversarial(crop_frames=1))
    assert MusicCM(str(big), adversarial=Adversarial(crop_frames=2)).discriminator is not None
