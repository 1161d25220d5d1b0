"""Distribution matching: its gradient in closed form, a toy that converges, who learns from what, resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gaussian import MUSICLDM, Gaussian
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule, Trainer
from tiny_bundle import SCHEDULER, build_random_bundle
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musiccm.config import load_experiment
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import NoiseSchedule, expand_to
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.denoiser import Denoiser
from musiccm.models.ema import Ema
from musiccm.models.lora import Lora
from musiccm.samplers import Lcm, Stepper
from musiccm.systems.dmd2 import DMD2, Matching, matching_loss
from musiccm.systems.settings import Adversarial, Distillation, Optimization

EXPERIMENT = Path(__file__).parents[2] / "experiments/dmd2.yaml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_random_bundle(tmp_path_factory.mktemp("bundle") / "teacher", frames=4)
    save_part(path, "scheduler", {**SCHEDULER, "prediction_type": "v_prediction"})
    return path


def make(bundle: Path | str, matching: Matching | None = None, lora: Lora | None = None, **more: Any) -> DMD2:
    torch.manual_seed(0)
    distillation = Distillation(weight=1.0, lora=lora, **more.pop("distillation", {}))
    optimization = Optimization(lr=1e-3, clip_norm=10.0, **more.pop("optimization", {}))
    return DMD2(str(bundle), distillation, matching or Matching(critic_steps=2), optimization=optimization, **more)


def make_batches(system: DMD2, count: int, size: int = 2) -> list[LatentBatch]:
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(count):
        unit = nn.functional.normalize(torch.randn(size, system.conditioner.width, generator=generator), dim=1)
        raw = system.codec.denormalise(torch.randn(size, *system.bundle.latent_shape(), generator=generator))
        batches.append(LatentBatch(raw, unit, unit, [str(i) for i in range(size)], ["x"] * size))
    return batches


def fit(system: DMD2, batches: list[LatentBatch], steps: int, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False, **options)
    trainer.fit(system, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def test_the_gradient_is_that_of_the_scores_in_size_and_direction() -> None:
    """By the noised densities N(alpha m, alpha^2 s^2 + sigma^2), whose scores are -(z - alpha m) / variance."""
    schedule = NoiseSchedule.from_config(MUSICLDM)
    real, fake = Gaussian(schedule, 0.7, 0.4), Gaussian(schedule, -0.2, 0.9)
    generator = torch.Generator().manual_seed(0)
    x = (fake.mean + fake.std * torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=generator)).requires_grad_()
    t_B = torch.tensor([20, 200, 500, 800, 980])
    alpha, sigma = (expand_to(c(t_B, torch.float64), x) for c in (schedule.alpha, schedule.sigma))
    z = (alpha * x + sigma * torch.randn(x.shape, dtype=torch.float64, generator=generator)).detach()
    loss, _ = matching_loss(x, real.x0(z, t_B), fake.x0(z, t_B))
    (found,) = torch.autograd.grad(loss, x)

    score_real, score_fake = (-(z - alpha * g.mean) / (alpha**2 * g.std**2 + sigma**2) for g in (real, fake))
    clean = (z + sigma**2 * score_real) / alpha  # Tweedie
    size = (x - clean).abs().mean((1, 2, 3), keepdim=True)
    expected = sigma**2 / alpha * (score_fake - score_real) / size / x.numel()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    # where the two distributions are one there is nothing to do
    same, _ = matching_loss(x, real.x0(z, t_B), real.x0(z, t_B))
    assert float(same) == 0.0


class Affine(nn.Module):
    """A generator of one step: x = mean + std z, for z of pure noise."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.mean + self.std * z,)


class Posterior(Affine):
    """The ideal denoiser of N(mean, std^2), of which both are learnt."""

    schedule = NoiseSchedule.from_config(MUSICLDM)

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> tuple[Tensor]:
        alpha, sigma = expand_to(self.schedule.alpha(t), z), expand_to(self.schedule.sigma(t), z)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return (self.mean + gain * (z - alpha * self.mean),)


class Oracle(nn.Module):
    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__()
        self.gaussian = gaussian

    def forward(self, z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.gaussian.x0(z, t).float()


def test_a_toy_generator_ends_at_the_teachers_mean_and_variance(bundle: Path) -> None:
    system = make(
        bundle, Matching(steps=[1], critic_steps=3, critic_lr=2e-2, gan_weight=0.0),
        distillation={"prediction_type": "sample", "guidance_scale": 1.0, "eval_ema_decay": 0.95},
        optimization={"decay_share": 0.5},
    )
    system.optimization.lr = 1e-2
    system.student, system.critic = Affine(-0.5, 1.2), Denoiser(Posterior(-0.5, 1.2), system.schedule, "sample")
    system.student_ema_target, system.student_ema_slow = Ema(system.student, 0.95), Ema(system.student, 0.95)
    system.frozen["teacher"] = Oracle(Gaussian(system.schedule, 0.7, 0.4))
    system.finish_init()
    fit(system, make_batches(system, 1, size=32) * 220, 220)
    for network in (system.student, system.student_ema_slow.module, system.critic.unet):
        assert float(network.mean) == pytest.approx(0.7, abs=0.04)
        assert abs(float(network.std)) == pytest.approx(0.4, abs=0.04)


def test_all_but_frozen_parts_learn_and_only_the_student_moves_the_clock(bundle: Path) -> None:
    system = make(bundle, adversarial=Adversarial(crop_frames=2, head_width=8))
    before = copy.deepcopy(system.state_dict())
    trainer = fit(system, make_batches(system, 2), 2)
    after = system.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {"student", "student_ema_target", "student_ema_slow", "critic", "head", "discriminator"}
    assert trainer.global_step == 2
    logged = {"loss_matching", "matching_gradient", "loss_gan", "loss_g", "loss_critic", "loss_head", "loss_d",
              "grad_norm_critic", "grad_norm_student"}
    assert {f"train/{name}" for name in logged} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("gan_weight", [0.0, 0.02])
def test_the_students_loss_leaves_no_gradient_in_critic_and_head(bundle: Path, gan_weight: float) -> None:
    system = make(bundle, Matching(gan_weight=gan_weight))
    system.trainer = SimpleNamespace(global_step=5)  # type: ignore[assignment]
    (batch,) = make_batches(system, 1)
    z0 = system.codec.normalise(batch.latents_BCTF)
    loss, parts, _ = system.objective(batch, z0, batch.text_BD, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in system.student.parameters())
    assert all(p.grad is None and p.requires_grad for module in system._critics() for p in module.parameters())
    assert ("loss_gan" in parts) == (gan_weight > 0) == (system.head is not None)


def test_a_roll_out_is_the_sampler_that_ships_and_trains_its_last_call_alone(bundle: Path) -> None:
    system = make(bundle, Matching(steps=[4], sampler={"name": "lcm", "gamma": 0.6}))
    (batch,) = make_batches(system, 1)
    z0, f = batch.latents_BCTF, system.consistency("online")
    seen: list[tuple[int, bool]] = []

    def watched(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        seen.append((int(t[0]), torch.is_grad_enabled()))
        return f(z, t, cond)

    system.consistency = lambda which: watched  # type: ignore[assignment, return-value, misc]
    counts = set()
    for seed in range(12):
        seen.clear()
        trained = seed % 2 == 0
        x = system.roll_out(z0, batch.text_BD, torch.Generator().manual_seed(seed), trained)
        calls = len(seen)
        assert [t for t, _ in seen] == [999, 759, 499, 259][:calls]
        assert [grad for _, grad in seen] == [False] * (calls - 1) + [trained] and x.requires_grad == trained
        counts.add(calls)
        # the same draws again, by the function that samples students
        again = torch.Generator().manual_seed(seed)
        torch.randint(1, (1,), generator=again), torch.randint(4, (1,), generator=again)
        noise, *fresh = (torch.randn(z0.shape, generator=again) for _ in range(calls))
        stepper = Stepper(f, system.schedule, [999, 759, 499, 259][:calls], Lcm(gamma=0.6))
        expected = stepper.sample(batch.text_BD, noise, lambda step, fresh=fresh: fresh[step])
        torch.testing.assert_close(x.detach(), expected)
    assert counts == {1, 2, 3, 4}


def test_a_resumed_run_ends_at_the_same_bits(bundle: Path, tmp_path: Path) -> None:
    through, first, second = make(bundle), make(bundle), make(bundle)
    batches = make_batches(through, 4)
    fit(through, batches, 4)
    fit(first, batches, 2).save_checkpoint(tmp_path / "half.ckpt")
    # a plain loader starts its epoch anew; what was trained on is left out by hand
    fit(second, batches[2:] + batches[:2], 4, tmp_path / "half.ckpt")
    found = second.state_dict()
    assert [name for name, value in through.state_dict().items() if not torch.equal(found[name], value)] == []
    other = make(bundle, Matching(critic_steps=5))
    with pytest.raises(MusiccmError, match="matching.critic_steps: it was trained with 2, this run has 5"):
        fit(other, batches, 4, tmp_path / "half.ckpt")


def test_a_student_can_be_an_adapter_and_steps_run_in_bf16(bundle: Path) -> None:
    system = make(bundle, lora=Lora(4, 8.0))
    before = copy.deepcopy(system.bundle.unet.state_dict())
    fit(system, make_batches(system, 1), 1, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in system.parameters())
    assert all(torch.equal(value, before[name]) for name, value in system.bundle.unet.state_dict().items())
    assert not torch.equal(system.critic.unet.conv_in.weight, system.bundle.unet.conv_in.weight)


def test_it_starts_from_an_exported_student_or_a_checkpoint(bundle: Path, tmp_path: Path) -> None:
    teacher = Bundle.from_pretrained(bundle)
    weights = {name: value + 0.01 for name, value in teacher.unet.state_dict().items()}
    unet = copy.deepcopy(teacher.unet)
    unet.load_state_dict(weights)
    folder = export_student(unet, teacher, tmp_path / "student", StudentInfo("v_prediction", 3.0))

    def started(start: Path | str, kind: str = "v_prediction", ckpt_path: str | None = None) -> DMD2:
        system = make(bundle, distillation={"start": str(start), "prediction_type": kind})
        system.trainer = SimpleNamespace(ckpt_path=ckpt_path)  # type: ignore[assignment]
        system.setup("fit")
        return system

    system = started(folder)
    for network in (system.student, system.student_ema_target.module, system.student_ema_slow.module):
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(system.critic.unet.conv_in.weight, teacher.unet.conv_in.weight)
    checkpoint = {"state_dict": {f"student_ema_slow.module.{name}": value for name, value in weights.items()},
                  "student": {"distillation.prediction_type": "v_prediction"}}
    torch.save(checkpoint, tmp_path / "run.ckpt")
    assert torch.equal(started(tmp_path / "run.ckpt").student.conv_in.weight, weights["conv_in.weight"])
    resumed = started("moved away since", ckpt_path="half.ckpt")
    assert torch.equal(resumed.student.conv_in.weight, teacher.unet.conv_in.weight)
    with pytest.raises(MusiccmError, match="predicts 'v_prediction', but distillation.prediction_type is 'sample'"):
        started(folder, "sample")
    with pytest.raises(MusiccmError, match="is no distilled student; leave the key out"):
        started(bundle)
    with pytest.raises(MusiccmError, match="distillation.start: expected none beside distillation.lora"):
        make(bundle, lora=Lora(), distillation={"start": str(folder)})


@pytest.mark.parametrize(
    ("setting", "key"),
    [({"critic_steps": 0}, "critic_steps: expected"), ({"critic_lr": 0.0}, "critic_lr: expected"),
     ({"gan_weight": -1.0}, "gan_weight: expected"), ({"noise_range": [0.5, 0.2]}, "noise_range: expected"),
     ({"noise_range": [0.5]}, "noise_range: expected"), ({"steps": []}, "steps: expected"),
     ({"steps": [51]}, "steps: expected"), ({"sampler": "heun"}, "sampler: expected .* found heun"),
     ({"sampler": "euler"}, "sampler: expected")],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], key: str) -> None:
    with pytest.raises(MusiccmError, match=key):
        Matching(**setting).check(torch.arange(19, 1000, 20))


def test_accumulation_and_sharding_are_refused(bundle: Path) -> None:
    with pytest.raises(MusiccmError, match="optimization.accumulate: expected 1"):
        make(bundle, optimization={"accumulate": 2})
    system = make(bundle)
    system._device_mesh = SimpleNamespace()  # what a strategy with shards sets
    with pytest.raises(MusiccmError, match="DMD2 .*use DDP"):
        system.configure_model()


def test_the_experiment_trains_the_packaged_student_further() -> None:
    content = load_experiment(EXPERIMENT)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    system = parser.instantiate_classes(parser.parse_object({"model": content["model"]})).model
    assert isinstance(system, DMD2) and system.matching.critic_steps == 3
    batches = make_batches(system, 2, size=1)
    trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=1,
                      enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(system, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    start = Bundle.from_pretrained("musiccm-tiny-student", ["unet"]).unet.state_dict()
    moved = torch.cat([(value - start[name].float()).flatten() for name, value in system.student.state_dict().items()])
    assert 0 < float(moved.abs().max()) < 1e-3, "it started there"
    assert trainer.callback_metrics["val/teacher_residual"] > 0
