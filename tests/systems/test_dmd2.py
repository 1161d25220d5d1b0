"""Distribution matching: toys that converge, whose turn it is, who learns from what, resuming, divergence."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gaussian import MUSICLDM, Gaussian
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback, LightningModule, Trainer
from short_fit import fit, make_batches
from tiny_bundle import SCHEDULER, build_random_bundle
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musiccm.callbacks.divergence import Divergence
from musiccm.config import load_experiment
from musiccm.diffusion import NoiseSchedule, expand_to
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.denoiser import Denoiser
from musiccm.models.ema import Ema
from musiccm.models.lora import Lora
from musiccm.samplers import student_stepper
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.parallel import normal_like
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
    def __init__(self, gaussian: Any) -> None:
        super().__init__()
        self.gaussian = gaussian

    def forward(self, z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.gaussian.x0(z, t).float()


def test_a_toy_generator_ends_at_the_teachers_mean_and_variance(bundle: Path) -> None:
    system = make(
        bundle, Matching(steps=[1], critic_steps=2, critic_lr=4e-2, gan_weight=0.0),
        distillation={"prediction_type": "sample", "guidance_scale": 1.0, "eval_ema_decay": 0.95},
        optimization={"decay_share": 0.5},
    )
    system.optimization.lr = 2e-2
    system.student, system.critic = Affine(-0.5, 1.2), Denoiser(Posterior(-0.5, 1.2), system.schedule, "sample")
    system.student_ema_target, system.student_ema_slow = Ema(system.student, 0.95), Ema(system.student, 0.95)
    system.frozen["teacher"] = Oracle(Gaussian(system.schedule, 0.7, 0.4))
    system.finish_init()
    fit(system, make_batches(system, 1, size=32), 120)
    for network in (system.student, system.student_ema_slow.module, system.critic.unet):
        assert float(network.mean) == pytest.approx(0.7, abs=0.04)
        assert abs(float(network.std)) == pytest.approx(0.4, abs=0.04)


class Mixture:
    """Every element +-0.9 with deviation 0.25, one sign in three being negative; all its estimates are exact."""

    schedule = NoiseSchedule.from_config(MUSICLDM)
    share, centres, std = torch.tensor([1 / 3, 2 / 3]), torch.tensor([-0.9, 0.9]), 0.25

    def x0(self, z: Tensor, t_B: Tensor) -> Tensor:
        alpha, sigma = (expand_to(c(t_B), z)[..., None] for c in (self.schedule.alpha, self.schedule.sigma))
        variance = alpha**2 * self.std**2 + sigma**2
        gap = z[..., None] - alpha * self.centres
        which = torch.softmax(self.share.log() - gap**2 / (2 * variance), dim=-1)
        return (which * (self.centres + alpha * self.std**2 / variance * gap)).sum(-1)

    def quantiles(self, count: int) -> Tensor:
        cumulative = torch.linspace(-3, 3, 6001)
        at = sum(w * torch.distributions.Normal(c, self.std).cdf(cumulative)
                 for w, c in zip(self.share, self.centres, strict=True))
        return cumulative[torch.searchsorted(at, (torch.arange(count) + 0.5) / count).clamp(max=6000)]

    def distance(self, x: Tensor) -> float:
        """Wasserstein-1 of the elements' distribution to this one."""
        return float((x.flatten().sort().values - self.quantiles(x.numel())).abs().mean())


class Elementwise(nn.Module):
    """A small network of each element by itself and of its timestep: a denoiser, or a student."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> tuple[Tensor]:
        s = expand_to(t / 1000, z).expand_as(z)
        return (z * 0.5 + self.layers(torch.stack([z, s, torch.sin(3 * s), torch.cos(3 * s)], dim=-1))[..., 0],)


@pytest.mark.slow
def test_a_student_with_one_mode_finds_both_of_its_teacher(bundle: Path) -> None:
    """One network of one and two steps, sampled by what ships; half of the way in a hundred and fifty updates."""
    mixture = Mixture()
    system = make(
        bundle, Matching(steps=[1, 2], critic_steps=3, critic_warmup_steps=40, critic_lr=1e-2, gan_weight=0.0),
        distillation={"prediction_type": "sample", "guidance_scale": 1.0, "eval_ema_decay": 0.9},
        optimization={"decay_share": 0.5},
    )
    system.optimization.lr = 5e-3
    system.student, system.critic = Elementwise(0), Denoiser(Elementwise(1), system.schedule, "sample")
    system.student_ema_target, system.student_ema_slow = Ema(system.student, 0.9), Ema(system.student, 0.9)
    system.frozen["teacher"] = Oracle(mixture)
    system.finish_init()
    noise, fresh = torch.randn((2, 64, 4, 4, 4), generator=torch.Generator().manual_seed(9))

    def samples(steps: int) -> Tensor:
        stepper = student_stepper(system.consistency("slow"), system.schedule, system.grid, steps)
        return stepper.sample(torch.zeros(64, system.conditioner.width), noise, lambda _: fresh)

    before = [mixture.distance(samples(steps)) for steps in (1, 2)]
    fit(system, make_batches(system, 1, size=32), 150)
    after = [mixture.distance(samples(steps)) for steps in (1, 2)]
    assert min(before) > 0.5 and all(late < 0.6 * early for early, late in zip(before, after, strict=True))
    for steps in (1, 2):
        shares = [float((samples(steps) * sign > 0.45).float().mean()) for sign in (-1, 1)]
        assert shares[0] > 0.15 and shares[1] > 0.4, shares


def test_all_but_frozen_parts_learn_and_only_the_student_moves_the_clock(bundle: Path) -> None:
    system = make(bundle, Matching(critic_steps=2, r1_weight=1.0), adversarial=Adversarial(crop_frames=2, head_width=8))
    before = copy.deepcopy(system.state_dict())
    trainer = fit(system, make_batches(system, 6), 2)
    after = system.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {"student", "student_ema_target", "student_ema_slow", "critic", "head", "discriminator"}
    assert trainer.global_step == 2 and system.batches_seen == 6
    logged = {"loss_matching", "matching_gradient", "loss_gan", "loss_g", "loss_critic", "loss_head", "loss_d", "r1",
              "grad_norm_critic", "grad_norm_student"}
    assert {f"train/{name}" for name in logged} <= set(trainer.callback_metrics)


class Turns(Callback):
    """Notes who had each batch, by what it returned; saves after one of them."""

    def __init__(self, path: Path | None = None, at: int = -1) -> None:
        self.path, self.at, self.who, self.critic_rates = path, at, "", []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        watched = outputs["watched"]
        who = "w" if "loss_warm_start" in watched else "s" if "loss_matching" in watched else "c"
        assert ("grad_norm_critic" in watched or "grad_norm_student" in watched) == (
            pl_module.batches_seen % pl_module.optimization.accumulate == 0)
        self.who += who
        if who == "s":
            grads = [p.grad for network in pl_module.critics() for p in network.parameters()]
            assert grads.count(None) == len(grads)
        if "grad_norm_critic" in watched:
            self.critic_rates.append(trainer.optimizers[-1].param_groups[0]["lr"])
        if pl_module.batches_seen == self.at:
            trainer.save_checkpoint(self.path)


def test_whose_turn_it_is(bundle: Path) -> None:
    """A step of warm start, three of the critic alone, then in turn; every step of two batches."""
    accumulate, expected = 2, "wwccccccccssccss"
    system = make(bundle, Matching(critic_steps=1, critic_warmup_steps=3, critic_lr=1.0, steps=[1]),
                  distillation={"warm_start_steps": 1}, optimization={"accumulate": accumulate, "warmup_steps": 8})
    turns = Turns()
    trainer = fit(system, make_batches(system, len(expected), size=1), 3, callbacks=[turns])
    assert turns.who == expected and trainer.global_step == 3 == system._steps_in(len(expected))
    # the critic's rate is warmed up by its own updates, of which there are more than the student's
    assert turns.critic_rates == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8])


def test_while_the_critic_warms_up_the_student_stands_still(bundle: Path) -> None:
    system = make(bundle, Matching(critic_warmup_steps=3, steps=[1]))
    before = copy.deepcopy(system.state_dict())
    trainer = fit(system, make_batches(system, 3), -1, max_epochs=1)
    after = system.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {"critic", "head"} and trainer.global_step == 0


@pytest.mark.parametrize("gan_weight", [0.0, 0.02])
def test_the_students_loss_leaves_no_gradient_in_critic_and_head(bundle: Path, gan_weight: float) -> None:
    system = make(bundle, Matching(gan_weight=gan_weight))
    system.trainer = SimpleNamespace(global_step=5)  # type: ignore[assignment]
    (batch,) = make_batches(system, 1)
    z0 = system.codec.normalise(batch.latents_BCTF)
    with system.critics_frozen():
        loss, parts, _ = system.objective(batch, z0, batch.text_BD, torch.Generator().manual_seed(0))
        loss.backward()
    assert all(p.grad is not None for p in system.student.parameters())
    assert all(p.grad is None and p.requires_grad for module in system.critics() for p in module.parameters())
    assert ("loss_gan" in parts) == (gan_weight > 0) == (system.head is not None)


@pytest.mark.parametrize("sampler", [{"name": "lcm", "gamma": 1.0}, {"name": "tcd"}])
def test_a_roll_out_is_the_sampler_that_ships_and_trains_its_last_call_alone(bundle: Path, sampler: dict) -> None:
    """Bit for bit what `student_stepper`, which samples exported students, gives of the same noise."""
    system = make(bundle, Matching(steps=[1, 2, 4, 8], sampler=sampler))
    (batch,) = make_batches(system, 1)
    z0, f = batch.latents_BCTF, system.consistency("online")
    seen: list[tuple[int, bool]] = []

    def watched(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        seen.append((int(t[0]), torch.is_grad_enabled()))
        return f(z, t, cond)

    system.consistency = lambda which: watched  # type: ignore[assignment, return-value, misc]
    whole = set()
    for seed in range(10):
        seen.clear()
        trained = seed % 2 == 0
        x = system.roll_out(z0, batch.text_BD, torch.Generator().manual_seed(seed), trained)
        assert [grad for _, grad in seen] == [False] * (len(seen) - 1) + [trained] and x.requires_grad == trained
        # the same draws again: number of steps, of calls, noise
        again = torch.Generator().manual_seed(seed)
        steps = [1, 2, 4, 8][int(torch.randint(4, (1,), generator=again))]
        calls = 1 + int(torch.randint(steps, (1,), generator=again))
        noise, *fresh = (normal_like(z0, again) for _ in range(calls))
        stepper = student_stepper(f, system.schedule, system.grid, steps, sampler)
        estimates: list[Tensor] = []
        spare = [*fresh, *[torch.zeros_like(noise)] * steps]  # of steps that the roll-out did not come to
        stepper.sample(batch.text_BD, noise, spare.__getitem__, lambda step, t, x0, kept=estimates: kept.append(x0))
        assert [t for t, _ in seen] == list(stepper.timesteps)[:calls]
        assert torch.equal(x.detach(), estimates[calls - 1])
        whole |= {steps} if calls == steps else set()
    assert len(whole) >= 2


def test_a_resumed_run_ends_at_the_same_bits(bundle: Path, tmp_path: Path) -> None:
    """Saved in the middle of a round, and of the critic's step, which has two batches."""
    own, accumulate, at = Matching(critic_steps=1, critic_warmup_steps=1, steps=[1, 2]), 2, 7
    through, second = (make(bundle, own, optimization={"accumulate": accumulate}) for _ in range(2))
    batches = make_batches(through, 10, size=1)
    fit(through, batches, 2, callbacks=[Turns(tmp_path / "half.ckpt", at)])
    # a plain loader starts its epoch anew; what was trained on is left out by hand
    trainer = fit(second, batches[at:] + batches[:at], 2, tmp_path / "half.ckpt")
    assert through.batches_seen == second.batches_seen == 10 and trainer.global_step == 2
    found = second.state_dict()
    assert [name for name, value in through.state_dict().items() if not torch.equal(found[name], value)] == []
    other = make(bundle, Matching(critic_steps=5, critic_warmup_steps=1, steps=[1, 2]),
                 optimization={"accumulate": accumulate})
    with pytest.raises(MusiccmError, match="matching.critic_steps: it was trained with 1, this run has 5"):
        fit(other, batches, 2, tmp_path / "half.ckpt")
    # a run of version 0.2, of whose batches each was a whole round
    old = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del old["student"]["matching.critic_warmup_steps"]
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(MusiccmError, match="old.ckpt: its run is of a version .* start a new one from its student"):
        fit(second, batches, 2, tmp_path / "old.ckpt")


def test_a_student_can_be_an_adapter_and_steps_run_in_bf16(bundle: Path) -> None:
    system = make(bundle, lora=Lora(4, 8.0))
    before = copy.deepcopy(system.bundle.unet.state_dict())
    fit(system, make_batches(system, 3), 1, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in system.parameters())
    assert all(torch.equal(value, before[name]) for name, value in system.bundle.unet.state_dict().items())
    assert not torch.equal(system.critic.unet.conv_in.weight, system.bundle.unet.conv_in.weight)


def test_a_critic_can_be_an_adapter_on_the_teachers_weights(bundle: Path, tmp_path: Path) -> None:
    lora = Lora(4, 8.0)
    system = make(bundle, Matching(critic_steps=1, critic_lora=lora))
    teacher = {id(p) for p in system.bundle.unet.parameters()}
    own = [p for p in system.critic.parameters() if id(p) not in teacher]
    assert sum(p.numel() for p in own) < 0.5 * sum(p.numel() for p in system.student.parameters())
    before = copy.deepcopy(system.bundle.unet.state_dict())
    fit(system, make_batches(system, 2), 1).save_checkpoint(tmp_path / "run.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in system.bundle.unet.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in system.bundle.unet.parameters())
    kept = {name for name in torch.load(tmp_path / "run.ckpt")["state_dict"] if name.startswith("critic.")}
    assert kept and all("lora_" in name for name in kept)
    again = make(bundle, Matching(critic_steps=1, critic_lora=lora))
    fit(again, make_batches(again, 2), 1, tmp_path / "run.ckpt")
    found = again.state_dict()
    assert all(torch.equal(found[name], value) for name, value in system.state_dict().items())


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
    # a test without a checkpoint measures what `start` names, unless the system was trained just before
    for seen, wanted in ((0, weights["conv_in.weight"]), (5, teacher.unet.conv_in.weight)):
        tested = make(bundle, distillation={"start": str(folder), "prediction_type": "v_prediction"})
        tested.batches_seen = seen
        tested.trainer = SimpleNamespace(ckpt_path=None)  # type: ignore[assignment]
        tested.setup("test")
        assert torch.equal(tested.student_ema_slow.module.conv_in.weight, wanted)
    with pytest.raises(MusiccmError, match="predicts 'v_prediction', but distillation.prediction_type is 'sample'"):
        started(folder, "sample")
    with pytest.raises(MusiccmError, match="distillation.start: .*absent.ckpt: no such checkpoint; train what"):
        started(tmp_path / "absent.ckpt")
    with pytest.raises(MusiccmError, match="is no distilled student; leave the key out"):
        started(bundle)
    checkpoint["state_dict"] = {"student_ema_slow.module.other": torch.zeros(1)}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(MusiccmError, match=r"do not fit the teacher .*; distillation.start must name a student of"):
        started(tmp_path / "other.ckpt")
    with pytest.raises(MusiccmError, match="distillation.start: expected none beside distillation.lora"):
        make(bundle, lora=Lora(), distillation={"start": str(folder)})


@pytest.mark.parametrize(
    ("setting", "key"),
    [({"critic_steps": 0}, "critic_steps: expected"), ({"critic_lr": 0.0}, "critic_lr: expected"),
     ({"gan_weight": -1.0}, "gan_weight: expected"), ({"noise_range": [0.5, 0.2]}, "noise_range: expected"),
     ({"noise_range": [0.5]}, "noise_range: expected"), ({"steps": []}, "steps: expected"),
     ({"steps": [51]}, "matching.steps: expected"), ({"sampler": "heun"}, "sampler: expected .* found heun"),
     ({"sampler": "euler"}, "sampler: expected"), ({"critic_warmup_steps": -1}, "critic_warmup_steps: expected"),
     ({"r1_weight": -1.0}, "r1_weight: expected"), ({"r1_noise": 0.0}, "r1_noise: expected"),
     ({"critic_lora": Lora(rank=0)}, "critic_lora.rank: expected")],
)
def test_settings_out_of_range_are_refused_before_the_bundle_is_read(setting: dict[str, Any], key: str) -> None:
    with pytest.raises(MusiccmError, match=key):
        make("no such bundle", Matching(**setting))


def test_a_teacher_without_captions_is_refused_before_its_weights_are_read(bundle: Path, tmp_path: Path) -> None:
    for broken, message in (("unet", "takes a condition of width None"), ("text_encoder", "has no text_encoder")):
        copied = shutil.copytree(bundle, tmp_path / broken)
        (copied / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
        index = json.loads((copied / "model_index.json").read_text())
        if broken == "unet":
            config = json.loads((copied / "unet/config.json").read_text())
            config["projection_class_embeddings_input_dim"] = None
            (copied / "unet/config.json").write_text(json.dumps(config))
        else:
            shutil.rmtree(copied / "text_encoder")
            del index["text_encoder"]
        (copied / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(MusiccmError, match=message):
            make(copied)


def test_a_critic_that_diverges_stops_the_run_by_its_name(bundle: Path) -> None:
    system = make(bundle, Matching(critic_steps=2))
    nn.init.constant_(system.head[-2].bias, float("nan"))
    with pytest.raises(MusiccmError, match=r"loss_head is nan at step 0, .*init_args\.matching\.critic_lr\)"):
        fit(system, make_batches(system, 6), 2, callbacks=[Divergence()])
    system = make(bundle, Matching(critic_steps=9, gan_weight=0.0, critic_lr=3.0, steps=[1]))
    with pytest.raises(MusiccmError, match=r"loss_critic is .* above .* its median .*matching\.critic_lr\)"):
        fit(system, make_batches(system, 9), 2, callbacks=[Divergence(factor=5.0, patience=2, window=2)])
    assert system.rate_key("loss_matching") == "model.init_args.optimization.lr"


def test_sharding_is_refused(bundle: Path) -> None:
    system = make(bundle)
    system._device_mesh = SimpleNamespace()  # what a strategy with shards sets
    with pytest.raises(MusiccmError, match="DMD2 .*use DDP"):
        system.configure_model()


def test_the_experiment_trains_a_student_further() -> None:
    content = load_experiment(EXPERIMENT)
    content["model"]["init_args"]["distillation"]["start"] = "musiccm-tiny-student"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    content["model"]["init_args"]["matching"]["critic_warmup_steps"] = 1
    system = parser.instantiate_classes(parser.parse_object({"model": content["model"]})).model
    assert isinstance(system, DMD2) and system.matching.critic_steps == 3 and system.matching.steps == [1, 2, 4, 8]
    batches = make_batches(system, 5, size=1)
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=1,
                      enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(system, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    start = Bundle.from_pretrained("musiccm-tiny-student", ["unet"]).unet.state_dict()
    moved = torch.cat([(value - start[name].float()).flatten() for name, value in system.student.state_dict().items()])
    assert 0 < float(moved.abs().max()) < 1e-3, "it started there"
    assert trainer.callback_metrics["val/teacher_residual"] > 0
