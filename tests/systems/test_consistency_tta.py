"""ConsistencyTTA's objective against closed forms, and against a restatement of its own stateful solver."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from gaussian import Gaussian
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule, Trainer
from short_fit import Save, fit, make_batches
from tiny_bundle import SCHEDULER, build_random_bundle
from tiny_tokens import build_token_bundle
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musiccm.cli import main
from musiccm.config import load_experiment
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import NoiseSchedule, expand_to, solver_jump, told_scale
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.pipeline import Pipeline
from musiccm.samplers import make_sampler, student_stepper
from musiccm.systems.clap_tuned import ClapTerm
from musiccm.systems.consistency_tta import ConsistencyTTA, Intervals
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.lcm import LCM
from musiccm.systems.settings import Distillation, Optimization, Phase
from musiccm.systems.warm_start import warm_start_loss

MEAN, STD = 0.7, 0.4
THEIRS: dict[str, Any] = {"prediction_type": "sample", "distance": "squared", "weight": 1.0, "grid": "linspace",
                          "grid_points": 17, "solver": "heun"}
SD21 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
#: sigma / alpha at the 18 points of `linspace(0, 999, 18)` under SD-2.1's betas, and min(sigma^-2, 5) at the upper 17.
SIGMAS = (0.029, 0.248, 0.383, 0.516, 0.658, 0.815, 0.996, 1.209, 1.466, 1.783, 2.186, 2.709, 3.404, 4.353, 5.679,
          7.581, 10.381, 14.615)
WEIGHTS = (5.0, 5.0, 3.75, 2.31, 1.51, 1.01, 0.68, 0.47, 0.31, 0.21, 0.14, 0.086, 0.053, 0.031, 0.017, 0.0093, 0.0047)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that predicts v under SD-2.1's betas, as TANGO does."""
    path = build_random_bundle(tmp_path_factory.mktemp("bundle") / "b", frames=8, evaluators=False)
    save_part(path, "scheduler", {**SCHEDULER, **SD21, "prediction_type": "v_prediction"})
    return str(path)


def make(bundle: str, intervals: Intervals | None = None, **own: Any) -> ConsistencyTTA:
    return ConsistencyTTA(bundle, Distillation(**{**THEIRS, **own}), intervals, Optimization(lr=3e-3))


# Gaussian data


def levels(system: Any) -> list[tuple[float, float]]:
    """Alpha and sigma of clean and of the grid, ascending."""
    table = system.schedule
    found = zip(table.alpha(system.grid, torch.float64), table.sigma(system.grid, torch.float64), strict=True)
    return [(1.0, 0.0), *((float(a), float(s)) for a, s in found)]


def gain(above: tuple[float, float], below: tuple[float, float], solver: str) -> float:
    """What one step multiplies `u = z - alpha mean` by: of `d(u / alpha) / d(sigma / alpha) = eps = c(t) u / alpha`."""
    (a, s), (b, r) = above, below
    c, c_below = (x * (1 - x**2 * STD**2 / (x**2 * STD**2 + y**2)) / y if y else 0.0 for x, y in (above, below))
    h = r / b - s / a
    if solver == "ddim" or r == 0:
        return b / a * (1 + h * c)
    return b / a * (1 + h / 2 * (c + c_below * (1 + h * c)))


class Ideal:
    """A student `f(z, t) = mean + (slope(t) + tilt) (z - alpha mean) + shift`, with a slope a grid point."""

    def __init__(self, system: Any, slopes: list[float]) -> None:
        self.system, self.slopes = system, torch.tensor(slopes, dtype=torch.float64)
        self.shift: Any = 0.0
        self.tilt: Any = 0.0

    def __call__(self, z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        alpha = expand_to(self.system.schedule.alpha(t_B, torch.float64), z)
        place = (t_B[:, None] >= self.system.grid[None]).sum(1) - 1  # -1 is clean, where f is z
        slope = expand_to(self.slopes[place.clamp_min(0)], z)
        f = MEAN + (slope + self.tilt) * (z - alpha * MEAN) + self.shift
        return torch.where(expand_to(t_B <= 0, z), z, f)


def ideal(bundle: str, solver: str, intervals: Intervals, **own: Any) -> tuple[Any, Ideal, list[float]]:
    """A system with the ideal teacher, its student on trial, and the solver's walk from each grid point to clean."""
    system = make(bundle, intervals, solver=solver, **own)
    data = Gaussian(system.schedule, MEAN, STD)
    system.frozen["teacher"] = nn.Module()
    system.frozen["teacher"].forward = data.denoise  # type: ignore[method-assign]
    walk, at = [1.0], levels(system)
    for n in range(1, len(at)):
        walk.append(walk[-1] * gain(at[n], at[n - 1], solver))
    online, target = Ideal(system, walk[1:]), Ideal(system, walk[1:])
    system.consistency = lambda which="slow": {"online": online, "target": target}[which]
    return system, online, walk[1:]


def clips(system: Any, each: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Data for so many items a grid point, in a stratified draw."""
    generator, n = torch.Generator().manual_seed(1), each * len(system.grid)
    z0 = MEAN + STD * torch.randn(n, *system.bundle.latent_shape(), generator=generator, dtype=torch.float64)
    return z0, torch.zeros(n, system.conditioner.width), generator


@pytest.mark.parametrize(("solver", "own"), [
    ("heun", {}), ("ddim", {}), ("heun", {"grid": "even", "grid_points": 25}),
])
def test_the_loss_vanishes_at_the_solvers_walk_down_the_grid_and_pulls_back_by_the_weights(bundle, solver, own):
    for weighting in ("uniform", "snr", "tail"):
        system, online, _ = ideal(bundle, solver, Intervals(weighting, lowest="solver", tail_weight=9.0), **own)
        snr = [min((a / s) ** 2, 5.0) for a, s in levels(system)[1:]]
        points = len(system.grid)
        weight = {"uniform": 1.0, "snr": sum(snr) / points, "tail": (points + 8) / points}[weighting]
        online.shift, online.tilt = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
        z0, cond, generator = clips(system, 2)
        loss, parts = system.loss(system.answers(z0, cond, generator))
        gradients = torch.autograd.grad(loss, (online.shift, online.tilt))
        assert float(loss.detach()) < 1e-9 and max(abs(float(g)) for g in gradients) < 1e-4
        online.shift, online.tilt = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 0.0
        loss, parts = system.loss(system.answers(z0, cond, generator))
        (gradient,) = torch.autograd.grad(loss, online.shift)
        assert float(loss.detach()) == pytest.approx(weight * 0.09, abs=1e-5) == float(parts["loss_distil"])
        assert float(gradient) == pytest.approx(weight * 0.6, abs=1e-4)


def test_with_the_clips_themselves_below_the_lowest_point_the_minimiser_is_the_same(bundle):
    """The mean of z0 given z is what the teacher says there; what is left of the loss is the variance about it."""
    system, online, _ = ideal(bundle, "heun", Intervals("uniform"))
    online.shift, online.tilt = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    z0, cond, generator = clips(system, 30)
    loss, _ = system.loss(system.answers(z0, cond, generator))
    a, s = levels(system)[1]
    left = STD**2 * s**2 / (a**2 * STD**2 + s**2) / len(system.grid)
    gradients = torch.autograd.grad(loss, (online.shift, online.tilt))
    assert float(loss.detach()) == pytest.approx(left, rel=0.1)
    scale = math.sqrt(left / z0[::17].numel())  # of the mean of as many errors as there are at the lowest point
    assert max(abs(float(g)) for g in gradients) < 8 * scale


def test_heuns_walk_comes_nearer_to_the_exact_consistency_function_than_ddims(bundle):
    """Down to the lowest point; from there to clean either is the mean of what can be, as one step must be."""
    errors = {}
    for solver in ("ddim", "heun"):
        system, _, walk = ideal(bundle, solver, Intervals())
        (a, s), (b, r) = levels(system)[1], levels(system)[-1]
        exact = math.sqrt((a**2 * STD**2 + s**2) / (b**2 * STD**2 + r**2))
        errors[solver] = abs(walk[-1] / walk[0] / exact - 1)
    assert errors["heun"] < 0.02 < 3 * errors["heun"] < errors["ddim"], errors


# their solver


class Stateful:
    """Heun's method as a scheduler with a memory: each second call ends what the one before it began.

    In variance-exploding variables, z = z0 + sigma eps, with sigma between whole timesteps by linear interpolation.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.table = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().numpy()
        self.derivative: Tensor | None = None

    def sigma(self, t: float) -> float:
        return float(np.interp(t, np.arange(len(self.table)), self.table))

    def scale_model_input(self, z: Tensor, t: float) -> Tensor:
        return z / (self.sigma(t) ** 2 + 1) ** 0.5

    def step(self, v: Tensor, t: float, z: Tensor, t_next: float) -> Tensor:
        sigma = self.sigma(t)
        x0 = z / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5
        derivative = (z - x0) / sigma
        if self.derivative is None:
            self.derivative, self.dt, self.sample = derivative, self.sigma(t_next) - sigma, z
            return z + derivative * self.dt
        mean, self.derivative = (self.derivative + derivative) / 2, None
        return self.sample + mean * self.dt


@pytest.mark.parametrize(("own", "tolerance"), [
    ({}, 2e-4),  # sigmas between whole timesteps, which are interpolated there and here in two ways
    ({"grid": "even", "grid_points": 20}, 2e-5),
])
def test_an_interval_is_that_of_their_stateful_scheduler_with_a_scale_an_item(bundle, own, tolerance):
    system = make(bundle, guidance="variable", **own)
    unet, scheduler = system.bundle.unet, Stateful(system.schedule.alphas_cumprod)
    index = torch.arange(1, len(system.grid)).flip(0)
    generator = torch.Generator().manual_seed(4)
    shape = (len(index), *system.bundle.latent_shape())
    z0, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    cond, w = torch.randn(len(index), 32, generator=generator), 6 * torch.rand(len(index), generator=generator)
    seen: list[tuple[Tensor, Tensor]] = []

    def target(z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        seen.append((z, t_B))
        return z

    system.consistency = lambda which="slow": target
    with torch.no_grad():
        system.at(index, z0, noise, told_scale(cond, w), "heun", "online", "target")
        null = system.conditioner.null(1)

        def query(z: Tensor, t: float, n: int) -> Tensor:
            u, c = (unet(z, t, encoder_hidden_states=None, class_labels=x, return_dict=False)[0]
                    for x in (null, cond[n : n + 1]))
            return (1 - w[n]) * u + w[n] * c

        for n, place in enumerate(index.tolist()):
            t, t_next = float(system.grid[place]), float(system.grid[place - 1])
            sigma = scheduler.sigma(t)
            top = place == len(system.grid) - 1
            # theirs is noise of deviation sigma; divided as their network sees it that is .9977 of ours
            z = noise[n : n + 1] * (sigma**2 + 1) ** 0.5 if top else z0[n : n + 1] + sigma * noise[n : n + 1]
            z_hat = z
            for now in (t, t_next):
                v = query(scheduler.scale_model_input(z_hat, now), now, n)
                z_hat = scheduler.step(v, now, z_hat, t_next)
            torch.testing.assert_close(seen[0][0][n : n + 1], scheduler.scale_model_input(z_hat, t_next),
                                       rtol=tolerance, atol=10 * tolerance)
            assert float(seen[0][1][n]) == t_next
    assert scheduler.derivative is None and len(seen) == 2


def test_an_interval_at_scales_0_1_and_2(bundle):
    """Scale 1 is the teacher under the caption alone, 0 under none; of DDIM's, which is linear in it, 2 is beyond 1."""
    system, index = make(bundle, guidance="variable"), torch.tensor([16, 9, 1])
    z0, noise, cond = drawn(system, 6)
    system.consistency = lambda which="slow": lambda z, t_B, cond: z
    null = system.conditioner.null(1).expand_as(cond)

    def ends(cond: Tensor, scale: float, solver: str) -> Tensor:
        return system.at(index, z0, noise, told_scale(cond, torch.full((3,), scale)), solver, "online", "target").target

    with torch.no_grad():
        for solver in ("heun", "ddim"):
            at = {scale: ends(cond, scale, solver) for scale in (0.0, 1.0, 2.0)}
            t_B, t_next_B = system.grid[index], system.lower[index]
            z = system.schedule.add_noise(z0, noise, t_B)
            z[0] = noise[0]
            for scale, told in ((0.0, null), (1.0, cond)):
                alone = solver_jump(lambda z, t, told=told: system.teacher(z, t, told), system.schedule, z, t_B,
                                    t_next_B, solver)
                torch.testing.assert_close(at[scale], alone, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(at[0.0], at[1.0], atol=1e-3)
        torch.testing.assert_close(at[2.0], 2 * at[1.0] - at[0.0], rtol=1e-3, atol=1e-3)


# what the student is asked and told


def test_weights_are_the_tables(bundle):
    system = make(bundle)
    found = system.weights(system.grid)
    assert found.tolist() == pytest.approx(WEIGHTS, rel=0.03)
    ratio = system.schedule.sigma(system.grid) / system.schedule.alpha(system.grid)
    assert ratio.tolist() == pytest.approx(SIGMAS[1:], abs=5.1e-4)
    tail = make(bundle, Intervals("tail", tail_weight=9.0))
    assert tail.weights(tail.grid).tolist() == [1.0] * 16 + [9.0]
    assert make(bundle, Intervals("uniform")).weights(system.grid) is None


def test_the_warm_start_of_a_student_of_v_has_their_first_stages_weights():
    schedule, asked = NoiseSchedule.from_config(SD21), []

    class Off:
        """Wrong by .2 in v, where the teacher's x0 is 0."""

        prediction_type = "v_prediction"

        def output(self, z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
            asked.extend(t_B.tolist())
            return expand_to(schedule.alpha(t_B) / schedule.sigma(t_B), z) * z + 0.2

    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    z0 = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    for bound in (5.0, 1.0, None):
        asked.clear()
        loss, parts = warm_start_loss(Off(), lambda z, t: torch.zeros_like(z), schedule, z0, torch.zeros(200, 1), 4.5,
                                      torch.Generator().manual_seed(2), bound)
        snr = abar[asked] / (1 - abar[asked])
        weights = 1.0 if bound is None else np.minimum(snr, bound) / (snr + 1)
        assert float(loss) == pytest.approx(0.04 * np.mean(weights), rel=1e-3) == float(parts["loss_warm_start"])


def test_a_systems_warm_start_takes_the_setting(bundle):
    """Of v, an item's weight is below 1, and nearly 0 where there is little but noise."""
    z0, _, cond = drawn(make(bundle), 7)
    losses = {}
    for bound in (None, 1e-6, 5.0):
        system = make(bundle, prediction_type="v_prediction", warm_start_steps=1, warm_start_snr=bound)
        system.student.conv_out.bias.data += 1.0  # off the teacher, whose copy it is
        with torch.no_grad():
            losses[bound] = float(system.warm_start_loss(z0, cond, torch.Generator().manual_seed(1))[0])
    assert 0 < losses[1e-6] < 1e-5 * losses[None] and losses[1e-6] < losses[5.0] < losses[None]


def drawn(system: ConsistencyTTA, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, *system.bundle.latent_shape())
    return (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator),
            nn.functional.normalize(torch.randn(3, 32, generator=generator), dim=1))


def test_at_the_top_point_training_is_sampling(bundle):
    """The clip is nowhere in its input: the student hears what a sampler of one step gives it."""
    system, index = make(bundle), torch.tensor([16, 16, 9])
    (z0, noise, cond), (other, _, _) = drawn(system, 1), drawn(system, 2)
    with torch.no_grad():
        first, second = (system.at(index, z, noise, cond, "ddim", "online", "target") for z in (z0, other))
        for part in ("x0", "target"):
            same = [torch.equal(a, b) for a, b in zip(getattr(first, part), getattr(second, part), strict=True)]
            assert same == [True, True, False], part
        stepper = student_stepper(system.consistency("online"), system.schedule, system.grid, 1)
        torch.testing.assert_close(first.x0[:2], stepper.sample(cond, noise)[:2])
        system.intervals.pure_noise = False
        shown = system.at(index, z0, noise, cond, "ddim", "online", "target")
    assert not torch.equal(shown.x0[0], first.x0[0]) and torch.equal(shown.x0[2], first.x0[2])


def test_below_the_lowest_point_the_target_is_the_clip_or_the_teachers_answer(bundle):
    system, index = make(bundle), torch.tensor([0, 0, 1])
    z0, noise, cond = drawn(system, 3)
    with torch.no_grad():
        found = system.at(index, z0, noise, cond, "heun", "online", "target")
        assert torch.equal(found.target[:2], z0[:2]) and not torch.equal(found.target[2], z0[2])
        system.intervals.lowest = "solver"
        other = system.at(index, z0, noise, cond, "heun", "online", "target")
        t_B = system.grid[index]
        x0 = system.guided_teacher(cond)(system.schedule.add_noise(z0, noise, t_B), t_B)
    torch.testing.assert_close(other.target[:2], x0[:2])
    assert torch.equal(other.target[2], found.target[2])


def test_the_boundary_changes_nothing_on_a_grid(bundle):
    """So that a student that predicts x0 needs no path of its own to be without one."""
    for own in ({}, {"grid": "even", "grid_points": 50}):
        system = make(bundle, **own)
        t_B = system.grid[:3]
        z, _, cond = drawn(system, 4)
        with torch.no_grad():
            with_boundary, without = system.consistency("online")(z, t_B, cond), system.denoiser("online")(z, t_B, cond)
        assert (with_boundary - without).abs().max() < 1e-5 * z.abs().max()
        assert not torch.equal(with_boundary, z)


def test_a_critic_on_the_same_grid_rolls_out_at_its_points(bundle):
    system = DMD2(bundle, Distillation(grid="linspace", grid_points=17, warm_start_steps=1), Matching(steps=[4]))
    z0, _, cond = drawn(make(bundle), 5)
    asked: list[float] = []
    f = system.consistency("online")
    system.consistency = lambda which: lambda z, t, c: (asked.extend(t.tolist()), f(z, t, c))[1]
    for seed in range(16):
        system.roll_out(z0, cond, torch.Generator().manual_seed(seed), trained=False)
    picked = {float(system.grid[i]) for i in (16, 12, 8, 4)}
    assert picked == set(asked)


# a run, its export, and what is made with that


class Run:
    """A student of four steps of two batches each, with a scale of its own, and its export."""

    def __init__(self, folder: Path, bundle: str) -> None:
        self.bundle = bundle
        self.system = self.made()
        self.batches = make_batches(self.system, 8, size=3)
        self.checkpoint = folder / "run/checkpoints/5.ckpt"
        trainer = fit(self.system, self.batches, 4, callbacks=[Save(self.checkpoint, 5)])
        trainer.save_checkpoint(folder / "run/checkpoints/last.ckpt")
        settings = {"bundle": bundle, "distillation": {**THEIRS, **self.own}}
        (folder / "run/config.yaml").write_text(yaml.safe_dump({"model": {"init_args": settings}}))
        self.student = folder / "student"
        assert main(["export", "--checkpoint", str(folder / "run/checkpoints/last.ckpt"), "--out",
                     str(self.student)]) == 0

    own = {"guidance": "variable", "warm_start_steps": 1, "warm_start_snr": 5.0, "eval_ema_decay": 0.5}

    def made(self, intervals: Intervals | None = None, **own: Any) -> ConsistencyTTA:
        optimization = Optimization(lr=3e-3, accumulate=2, decay_share=1.0, decay="linear")
        return ConsistencyTTA(self.bundle, Distillation(**{**THEIRS, **self.own, **own}), intervals, optimization)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bundle: str) -> Iterator[Run]:
    yield Run(tmp_path_factory.mktemp("run"), bundle)


def test_a_resumed_run_comes_to_the_same_weights_and_another_is_refused(run: Run) -> None:
    second = run.made()
    fit(second, run.batches[5:] + run.batches[:5], 4, run.checkpoint)
    found = second.state_dict()
    assert [name for name, value in run.system.state_dict().items() if not torch.equal(value, found[name])] == []
    start = run.system.bundle.unet.state_dict()
    assert not torch.equal(run.system.student.state_dict()["conv_in.weight"], start["conv_in.weight"])
    for key, other in (("distillation.grid", run.made(grid="even", grid_points=20)),
                       ("distillation.warm_start_snr", run.made(warm_start_snr=None)),
                       ("intervals.weighting", run.made(Intervals("uniform")))):
        with pytest.raises(MusiccmError, match=rf"init_args\.{key}: it was trained with"):
            fit(other, run.batches, 4, run.checkpoint)


def test_validation_is_logged(run: Run) -> None:
    loader = DataLoader(run.batches[:2], batch_size=None)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (found,) = trainer.validate(run.system, loader, verbose=False)
    assert math.isfinite(found["val/loss_distil"]) and found["val/loss_distil"] > 0


def test_the_export_is_sampled_on_its_grid_alone(run: Run) -> None:
    pipeline = Pipeline.from_pretrained(run.student)
    assert torch.equal(pipeline.grid, run.system.grid) and pipeline.prediction_type == "sample"
    record = json.loads((run.student / "musiccm.json").read_text())["distillation"]
    assert (record["grid"], record["timesteps"]) == ("linspace", run.system.grid.tolist())
    asked: list[float] = []
    pipeline.denoiser.register_forward_pre_hook(lambda module, inputs: asked.extend(inputs[1].tolist()))
    prompt = "a calm piano melody over soft strings"
    for steps, picked in ((1, [16]), (2, [16, 8]), (4, [16, 12, 8, 4])):
        assert pipeline.stepper(steps).timesteps == [float(run.system.grid[i]) for i in picked]
    pipeline(prompt, 2)
    assert asked == pipeline.stepper(2).timesteps
    asked.clear()
    whole = pipeline.compose(prompt, 2.5, 4, seed=1)
    streamed = torch.cat(list(pipeline.stream(prompt, 2.5, steps=4, seed=1)))
    assert set(asked) == set(pipeline.stepper(4).timesteps), "long pieces and streams do not round them"
    torch.testing.assert_close(streamed, whole, rtol=1e-3, atol=1e-4)
    for name in ("tcd", "ddim"):
        assert pipeline.stepper(4, sampler=make_sampler(name)).sampler.name == name
    for steps in (18, 0):
        with pytest.raises(MusiccmError, match="steps: expected a whole number from 1 to 17, the size of the grid"):
            pipeline(prompt, steps)
    card = (run.student / "README.md").read_text()
    assert "17 timesteps (58.7647, 117.529, ..., 999)" in card


def test_diffusers_is_told_no_other_grid(run: Run, bundle: str, tmp_path: Path) -> None:
    """Its LCMScheduler would read 17 points as 57, 115, ..., 985; the class name keeps it from that."""
    config = json.loads((run.student / "scheduler/scheduler_config.json").read_text())
    theirs = diffusers.LCMScheduler.from_config({**config, "_class_name": "LCMScheduler"})
    theirs.set_timesteps(1)
    assert theirs.timesteps.tolist() != [999], "which is what is kept from it"
    assert config["_class_name"] == "LinspaceLCMScheduler" and not hasattr(diffusers, config["_class_name"])
    fixed = make(bundle)
    info = StudentInfo(prediction_type="sample", guidance_scale=3.0, grid_points=17, grid="linspace")
    card = (export_student(fixed.student, fixed.bundle, tmp_path / "s", info) / "README.md").read_text()
    assert "timesteps lie between whole ones, which diffusers' `LCMScheduler` cannot state" in card
    assert "```python" not in card
    with pytest.raises((AttributeError, ValueError), match="LinspaceLCMScheduler"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "s")
    with pytest.raises(MusiccmError, match="divisor of num_train_timesteps = 1000, found 17.* kind linspace"):
        export_student(fixed.student, fixed.bundle, tmp_path / "e", StudentInfo("sample", 3.0, grid_points=17))


@pytest.mark.parametrize(("change", "said"), [
    ({"grid": "even"}, "grid is 'even', but the student was trained with 'linspace'"),
    ({"grid": "karras"}, "grid is 'karras'"),
    ({"original_inference_steps": 18}, "original_inference_steps is 18"),
    ({"_class_name": "LCMScheduler"}, "which only 'LinspaceLCMScheduler' samples"),
])
def test_an_altered_grid_is_refused(run: Run, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    copy = shutil.copytree(run.student, tmp_path / "copy")
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(MusiccmError, match=said):
        Pipeline.from_pretrained(copy)
    settings = json.loads((copy / "musiccm.json").read_text())
    if change.get("grid") == "karras":  # nor does a record that agrees help
        settings["distillation"] = {**settings["distillation"], **change}
        (copy / "musiccm.json").write_text(json.dumps(settings))
        with pytest.raises(MusiccmError, match="scheduler_config.json: grid: expected one of even, linspace"):
            Pipeline.from_pretrained(copy)
    if "_class_name" in change:  # nor one that says nothing
        settings["distillation"] = {}
        (copy / "musiccm.json").write_text(json.dumps(settings))
        with pytest.raises(MusiccmError, match="a student of a grid of kind 'linspace' has 'LinspaceLCMScheduler'"):
            Pipeline.from_pretrained(copy)


@pytest.mark.parametrize(("own", "said"), [
    ({"grid": "karras"}, "distillation.grid: expected one of even, linspace, found 'karras'"),
    ({"curriculum": [Phase(1.0, 100)]}, "distillation.curriculum: expected none"),
    ({"intervals": Intervals("min_snr")}, "intervals.weighting: expected one of snr, uniform, tail"),
    ({"intervals": Intervals(lowest="clean")}, "intervals.lowest: expected one of data, solver"),
    ({"intervals": Intervals(tail_weight=0.0)}, "intervals.tail_weight: expected a number above 0"),
    ({"intervals": Intervals(snr_bound=math.nan)}, "intervals.snr_bound: expected a number above 0"),
    ({"warm_start_snr": 0.0}, "distillation.warm_start_snr: expected a number above 0"),
])
def test_settings_that_cannot_be_are_refused_before_the_bundle_is_read(own: dict[str, Any], said: str) -> None:
    with pytest.raises(MusiccmError, match=said):
        make("no-such-bundle", own.pop("intervals", None), **own)


def test_what_does_not_go_with_a_grid_or_a_noise_process_is_refused(bundle: str, tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="distillation.grid: expected even, as jumps of LCM have whole timesteps"):
        LCM("no-such-bundle", Distillation(grid="linspace"))
    for points in (17, 18):
        with pytest.raises(MusiccmError, match=f"distillation.grid_points: expected a divisor.*1000, found {points}"):
            make(bundle, grid="even", grid_points=points)
    with pytest.raises(MusiccmError, match="distillation.grid_points: expected 1 to 999 of a linspace.*found 1000"):
        make(bundle, grid_points=1000)
    with pytest.raises(MusiccmError, match="optimization.decay: expected one of cosine, linear, found 'exponential'"):
        ConsistencyTTA("no-such-bundle", optimization=Optimization(decay="exponential"))
    flow = shutil.copytree(bundle, tmp_path / "flow")
    save_part(flow, "scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000,
                                  "shift": 1.0})
    with pytest.raises(MusiccmError, match="intervals.weighting: expected uniform or tail.*gives no weight"):
        make(str(flow))
    assert make(str(flow), Intervals("uniform")).weights(torch.tensor([999.0])) is None


# experiments


def stated(name: str) -> tuple[dict[str, Any], Distillation, Intervals, Optimization]:
    content = load_experiment(name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    assert parser.parse_object({"model": content["model"]}).model.class_path.endswith("consistency_tta.ConsistencyTTA")
    arguments = content["model"]["init_args"]
    found = (Distillation(**arguments["distillation"]), Intervals(**arguments["intervals"]),
             Optimization(**arguments["optimization"]))
    for part in found:
        part.check()
    ConsistencyTTA.check_experiment({**content, "subcommand": "fit"})
    return content, *found


def test_the_papers_recipe_and_ours() -> None:
    content, d, intervals, o = stated("tta/consistencytta")
    assert intervals == Intervals("snr", snr_bound=5.0, lowest="data", pure_noise=True)
    assert (d.grid, d.grid_points, d.solver, d.prediction_type, d.distance) == (
        "linspace", 17, "heun", "sample", "squared")
    assert (d.guidance, d.guidance_range, d.timestep_mode, d.tail) == ("variable", [0.0, 6.0], "uniform", 0.0)
    assert (d.target_ema_decay, d.eval_ema_decay, d.weight) == (0.95, 0.999, 1.0)
    assert (o.lr, list(o.betas), o.weight_decay, o.warmup_steps, o.decay) == (1e-5, [0.9, 0.999], 1e-4, 750, "linear")
    data = content["data"]["init_args"]
    # 6 clips and 3 mixtures of them, five times
    assert (data["batch_size"], data["mixtures"], o.accumulate) == (9, 0.5, 5)
    assert (content["trainer"]["max_epochs"], content["trainer"]["precision"]) == (60, "bf16-mixed")
    (evaluation,) = (c["init_args"] for c in content["trainer"]["callbacks"] if c["class_path"].endswith("Evaluation"))
    assert evaluation["steps"][0] == 1
    ours, d, intervals, o = stated("tta/consistencytta_ours")
    assert (d.grid, 1000 % d.grid_points, d.prediction_type, intervals.weighting) == ("even", 0, "v_prediction", "tail")
    assert ours["data"] == content["data"]


def test_the_comparison_with_other_objectives_is_on_their_terms() -> None:
    content, d, *_ = stated("objectives/consistency_tta")
    lcm = load_experiment("objectives/lcm")
    for section in ("trainer", "data"):
        assert content[section] == lcm[section]
    theirs = lcm["model"]["init_args"]
    assert content["model"]["init_args"]["optimization"] == theirs["optimization"]
    assert (d.guidance_scale, d.warm_start_steps) == (theirs["distillation"]["guidance_scale"],
                                                      theirs["distillation"]["warm_start_steps"])


def test_sigmas_between_timesteps_are_those_of_linear_interpolation_to_five_digits() -> None:
    """Here the logarithm is interpolated; the difference is below the rounding of bf16 by a hundred times."""
    schedule, t = NoiseSchedule.from_config(SD21), np.linspace(0, 999, 18)
    found = schedule.sigma(torch.tensor(t), torch.float64) / schedule.alpha(torch.tensor(t), torch.float64)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_allclose(found.numpy(), np.interp(t, np.arange(1000), np.sqrt((1 - abar) / abar)), rtol=1e-5)
    np.testing.assert_allclose(found.numpy(), SIGMAS, atol=5.1e-4)


def test_clap_tuning_weighs_an_items_sound_as_its_latents(bundle: str, tmp_path: Path) -> None:
    """On a bundle of tokens, whose student is told a scale, by the CLAP of another bundle that reads the captions."""
    tokens = build_token_bundle(tmp_path / "tokens", frames=8)
    save_part(tokens, "scheduler", {**SCHEDULER, **SD21, "prediction_type": "v_prediction"})
    distillation = Distillation(**{**THEIRS, "guidance": "variable", "guidance_scale": 4.0, "guidance_range": [0, 6]})
    captions = ["slow organ chords", "a calm piano melody over soft strings"]
    raw = torch.randn(2, *Bundle.from_pretrained(tokens).latent_shape(), generator=torch.Generator().manual_seed(0))
    for term, uniform in ((ClapTerm(network=bundle), False), (ClapTerm(network=bundle, weighting="uniform"), True)):
        torch.manual_seed(0)
        system = ConsistencyTTA(str(tokens), distillation, clap=term)
        batch = LatentBatch(raw, system.conditioner.text(captions), None, ["a", "b"], captions)
        z0, cond = system.codec.normalise(raw), told_scale(batch.text_BD, torch.tensor([0.5, 5.0]))
        total, parts, _ = system.objective(batch, z0, cond, torch.Generator().manual_seed(3))
        found = system.answers(z0, cond, torch.Generator().manual_seed(3))
        loss, _ = system.loss(found)
        clap, codec = Bundle.from_pretrained(bundle).conditioner(), Bundle.from_pretrained(tokens).codec("original")
        with torch.no_grad():
            fake, real = (clap.audio(codec.decode(z), 16000) for z in (found.x0, z0))
            each = 2 - (fake * clap.text(captions)).sum(1) - (fake * real).sum(1)
        assert found.weight_B is not None and found.weight_B[0] != found.weight_B[1]
        expected = loss + 0.1 * (each if uniform else found.weight_B * each).mean()
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
        assert {"loss_distil", "loss_clap", "clap_text", "clap_real"} <= set(parts)
        total.backward()
        assert all(p.grad is None for p in system.frozen.parameters())
