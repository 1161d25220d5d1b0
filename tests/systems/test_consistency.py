"""The consistency family on Gaussian data, for which every target, minimiser and gradient has a closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gaussian import Gaussian
from pytorch_lightning import Trainer
from tiny_bundle import build_random_bundle
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musiccm.config import load_experiment
from musiccm.data.batch import LatentBatch, TrajectoryBatch
from musiccm.diffusion import consistency_boundary, expand_to, sampling_timesteps
from musiccm.errors import MusiccmError
from musiccm.samplers import Ddim
from musiccm.systems.cmt import CMT, Paths
from musiccm.systems.lcm import LCM
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.pcm import PCM, Phased
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.teacher_paths import kept_timesteps, roll_out

MEAN, STD = 0.7, 0.4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b", frames=4, evaluators=False))


class Level:
    """What DDIM with the ideal teacher does to `u` of `z = alpha mean + u`: it multiplies it, jump by jump."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.at = functools.cache(self._at)  # tensors of one number, asked for thousands of times

    def _at(self, t: int) -> tuple[float, float]:
        if t <= 0:
            return 1.0, 0.0
        t_B = torch.tensor([t])
        return float(self.process.alpha(t_B, torch.float64)), float(self.process.sigma(t_B, torch.float64))

    def gain(self, t: int, t_next: int) -> float:
        (a, s), (b, r) = self.at(t), self.at(t_next)
        g = a * STD**2 / (a**2 * STD**2 + s**2)
        return b * g + r * (1 - a * g) / s

    def all_the_way(self, t: int, skip: int, end: int = 0) -> float:
        product = 1.0
        while t > end:
            product, t = product * self.gain(t, max(t - skip, end)), max(t - skip, end)
        return product


@dataclass
class Solution:
    """A student whose consistency function is `f(z, t) = mean + slope(t) (z - alpha mean) + shift`."""

    system: LCM
    slope: Callable[[int], float]
    shift: Tensor | float = 0.0

    def __call__(self, z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        alpha = expand_to(self.system.schedule.alpha(t_B, torch.float64), z)
        slope = expand_to(torch.tensor([self.slope(int(t)) for t in t_B], dtype=torch.float64), z)
        f = MEAN + slope * (z - alpha * MEAN) + self.shift
        c_skip, c_out = (expand_to(c, z) for c in consistency_boundary(t_B.double()))
        return torch.where(c_out == 0, torch.zeros_like(z), (f - c_skip * z) / c_out.clamp_min(1e-9))


class Teacher(nn.Module):
    def __init__(self, process: Any) -> None:
        super().__init__()
        self.data = Gaussian(process, MEAN, STD)

    def forward(self, z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        return self.data.x0(z, t_B)


def solved(system: Any, slope: Callable[[int], float]) -> tuple[Any, dict[str, Solution]]:
    """The system with the ideal teacher, and a student of the given slopes in the place of all its networks."""
    system.frozen["teacher"] = Teacher(system.schedule)
    students = {name: Solution(system, slope) for name in ("online", "target", "slow")}
    system.denoiser = lambda which="slow": students[which]
    system._progress = lambda: 0.0
    return system, students


def shifted(system: Any, students: dict[str, Solution], names: str, by: float) -> Tensor:
    theta = torch.tensor(by, dtype=torch.float64, requires_grad=True)
    for name in names.split():
        students[name].shift = theta
    return theta


def data(system: Any, n: int = 64) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(1)
    z0 = MEAN + STD * torch.randn(n, *system.bundle.latent_shape(), generator=generator, dtype=torch.float64)
    return z0, torch.zeros(n, system.conditioner.width), generator


SETTINGS: dict[str, Any] = {"prediction_type": "epsilon", "distance": "squared", "weight": 1.0}


@pytest.mark.parametrize(("skip", "jumps"), [(100, 1), (40, 2), (20, 1)])
def test_the_consistency_loss_vanishes_at_the_fixed_point_of_its_jumps(bundle, skip, jumps):
    """Which is the m-fold jump repeated until clean; the last stretch may be shorter."""
    system = LCM(bundle, Distillation(curriculum=[Phase(1.0, skip, jumps)], **SETTINGS))
    level = Level(system.schedule)
    system, students = solved(system, lambda t: level.all_the_way(t, skip))
    theta = shifted(system, students, "online", 0.0)
    z0, cond, generator = data(system)
    _, loss, _ = system.distil(z0, cond, generator)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert loss.item() < 1e-9 and abs(gradient.item()) < 1e-5


def test_a_shift_of_the_student_alone_is_pulled_back_and_one_of_its_target_too_only_where_jumps_reach_clean(bundle):
    """Squared error: gradient 2 theta; with the target shifted too, only the items whose jump ends clean feel it."""
    system = LCM(bundle, Distillation(curriculum=[Phase(1.0, 100)], **SETTINGS))
    level = Level(system.schedule)
    for names, share in (("online", 1.0), ("online target", 5 / 50)):  # t = 19, 39, ..., 99 of 50 points
        system, students = solved(system, lambda t: level.all_the_way(t, 100))
        theta = shifted(system, students, names, 0.3)
        z0, cond, generator = data(system, 100)  # stratified: exactly two items a grid point
        _, loss, _ = system.distil(z0, cond, generator)
        (gradient,) = torch.autograd.grad(loss, theta)
        assert float(loss) == pytest.approx(share * 0.3**2, abs=1e-5)
        assert float(gradient) == pytest.approx(share * 2 * 0.3, abs=1e-4)


def test_the_expected_target_is_the_mean_of_what_the_jump_leaves(bundle):
    """Of a target network f(z) = z it is where the jump lands, alpha' mean + gain u, with E u = alpha (z0 - mean)."""
    system = LCM(bundle, Distillation(curriculum=[Phase(1.0, 200)], **SETTINGS))
    level = Level(system.schedule)
    system, students = solved(system, lambda t: 0.0)
    wrong = lambda z, t, cond: z * (1 - expand_to(consistency_boundary(t)[0], z)) / expand_to(  # noqa: E731
        consistency_boundary(t)[1].clamp_min(1e-9), z)
    students["target"] = wrong
    t_B, z0 = torch.full((4000,), 599), torch.full((4000, *system.bundle.latent_shape()), 1.1, dtype=torch.float64)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = system.schedule.add_noise(z0, noise, t_B)
    cond = torch.zeros(len(z0), system.conditioner.width)
    _, target = system.both_ends(z, t_B, cond, Phase(1.0, 200), "ddim", "online", "target")
    (a, _), (b, _), gain = level.at(599), level.at(399), level.gain(599, 399)
    assert float(target.mean()) == pytest.approx(b * MEAN + gain * a * (1.1 - MEAN), abs=0.01)


def test_lcm_is_musiccm_without_its_adversarial_term(bundle):
    settings = Distillation(prediction_type="epsilon", warm_start_steps=1, curriculum=[Phase(1.0, 100)])
    ends = []
    for kind, more in ((LCM, {}), (MusicCM, {"adversarial": Adversarial(weight=0.0)})):
        torch.manual_seed(0)
        system = kind(bundle, distillation=settings, optimization=Optimization(lr=1e-3), **more)
        ends.append(fit(system, 2).state_dict())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def fit(system: Any, steps: int) -> Any:
    generator, width = torch.Generator().manual_seed(3), system.conditioner.width
    shape = (2, *system.bundle.latent_shape())
    batches = [LatentBatch(torch.randn(shape, generator=generator), torch.randn(2, width, generator=generator), None,
                           ["a", "b"], ["x", "y"]) for _ in range(steps)]
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False, limit_val_batches=1,
                      val_check_interval=steps, num_sanity_val_steps=0)
    trainer.fit(system, DataLoader(batches, batch_size=None), DataLoader(batches[:1], batch_size=None))
    assert torch.isfinite(trainer.callback_metrics["val/loss_distil"])
    return system


def test_a_target_without_an_average_is_the_student_itself(bundle):
    settings = Distillation(prediction_type="epsilon", target_ema_decay=0.0, curriculum=[Phase(1.0, 100)])
    system = fit(LCM(bundle, settings, Optimization(lr=1e-3)), 2)
    online, target = system.student.state_dict(), system.student_ema_target.module.state_dict()
    assert all(torch.equal(value, target[name]) for name, value in online.items())
    assert not all(torch.equal(value, system.bundle.unet.state_dict()[name]) for name, value in online.items())


def phased(bundle: str, skip: int, jumps: int = 1, phases: int = 4) -> PCM:
    return PCM(bundle, Distillation(curriculum=[Phase(1.0, skip, jumps)], **SETTINGS), Phased(phases))


def edge(t: int) -> int:
    return max(e for e in (0, 259, 499, 759) if e < t)


def slope_to_edge(level: Level, t: int, s: int, product: float) -> float:
    """The slope of x0 with which one DDIM step from t to s multiplies u by `product`."""
    (a, r), (b, q) = level.at(t), level.at(s)
    return (product * r - q) / (b * r - q * a)


def test_edges_are_the_timesteps_of_the_sampler_and_each_belongs_to_the_phase_below(bundle):
    system = phased(bundle, 100)
    assert system.edges.flip(0).tolist() == sampling_timesteps(4, system.grid).tolist() == [999, 759, 499, 259]
    assert system.edge_of(system.grid).tolist() == [edge(t) for t in system.grid.tolist()]
    assert phased(bundle, 100, phases=1).edge_of(system.grid).tolist() == [0] * 50


@pytest.mark.parametrize(("skip", "jumps"), [(100, 1), (40, 2), (60, 1)])
def test_the_phased_loss_vanishes_at_the_jumps_repeated_to_the_edge_and_pulls_a_shift_back_by_what_the_edge_sees_of_it(
    bundle, skip, jumps
):
    """A shift of x0 by theta moves the edge's point by (alpha_s - sigma_s alpha_t / sigma_t) theta."""
    system = phased(bundle, skip, jumps)
    level = Level(system.schedule)

    def slope(t: int) -> float:
        return slope_to_edge(level, t, edge(t), level.all_the_way(t, skip, edge(t)))

    for by in (0.0, 0.3):
        system, students = solved(system, slope)
        theta = shifted(system, students, "online", by)
        z0, cond, generator = data(system, 50)  # every grid point once
        _, loss, _ = system.distil(z0, cond, generator)
        (gradient,) = torch.autograd.grad(loss, theta)
        seen = []
        for t in system.grid.tolist():
            (a, r), (b, q) = level.at(t), level.at(edge(t))
            seen.append((b - q * a / r) ** 2)
        mean = sum(seen) / len(seen)
        assert float(loss) == pytest.approx(mean * by**2, abs=1e-6)
        assert float(gradient) == pytest.approx(2 * mean * by, abs=1e-5)


def test_an_exactly_phased_student_samples_the_exact_flow_in_as_many_steps_as_phases_and_no_others(bundle):
    system = phased(bundle, 20)
    level, exact = Level(system.schedule), Gaussian(system.schedule, MEAN, STD)

    def slope(t: int) -> float:
        (a, r), (b, q) = level.at(t), level.at(edge(t))
        flow = ((b**2 * STD**2 + q**2) / (a**2 * STD**2 + r**2)) ** 0.5
        return slope_to_edge(level, t, edge(t), flow)

    system, _ = solved(system, slope)
    f = system.consistency("slow")
    noise = torch.randn(2, *system.bundle.latent_shape(), generator=torch.Generator().manual_seed(0)).double()
    expected = exact.f(noise, torch.full((2,), 999))
    errors = {}
    for steps in (1, 2, 4, 8):
        timesteps = sampling_timesteps(steps, system.grid).tolist()
        found = Ddim().sample(lambda z, t: f(z, t, None), system.schedule, noise, timesteps)
        errors[steps] = float((found - expected).abs().max())
    assert errors[4] < 1e-4 and min(errors[steps] for steps in (1, 2, 8)) > 0.01, errors


def test_phased_consistency_trains_and_refuses_what_it_cannot_do(bundle):
    fit(PCM(bundle, Distillation(prediction_type="epsilon", curriculum=[Phase(1.0, 100)])), 2)
    with pytest.raises(MusiccmError, match="distillation.curriculum: expected jumps to be a whole number"):
        PCM(bundle, Distillation(curriculum=[Phase(1.0, 100, "to_zero")]))
    for wrong, said in ((Phased(0), "phased.phases"), (Phased(51), "phased.phases: expected at most .*50, found 51")):
        with pytest.raises(MusiccmError, match=said):
            PCM("no-such-bundle", phased=wrong)  # refused before the bundle is looked for
    content = {**load_experiment("objectives/pcm"), "subcommand": "fit"}
    PCM.check_experiment(content)
    callbacks = content["trainer"]["callbacks"]
    for number, key, value, said in ((2, "steps", [1, 4], r"Evaluation.steps: expected \[4\].*found \[1\]"),
                                     (2, "sampler", {"name": "lcm", "gamma": 0.6}, "Evaluation.sampler"),
                                     (1, "sampler", None, "Panels.sampler"), (1, "steps", [2], "Panels.steps")):
        changed = [dict(callback) for callback in callbacks]
        changed[number] = {**changed[number], "init_args": {**changed[number]["init_args"], key: value}}
        with pytest.raises(MusiccmError, match=said):
            PCM.check_experiment({**content, "trainer": {"callbacks": changed}})


def test_the_teachers_path_and_its_end_are_those_of_repeated_jumps(bundle):
    system, _ = solved(CMT(bundle, Distillation(**SETTINGS), Paths(steps=25, points=5)), lambda t: 0.0)
    level, shape = Level(system.schedule), (3, *system.bundle.latent_shape())
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = kept_timesteps(25, 5, 1000)
    assert kept == [999, 799, 599, 399, 199]
    points, end = roll_out(system.guided_teacher(torch.zeros(3, 32)), system.schedule, noise, 25, kept)
    a, _ = level.at(999)
    u = noise - a * MEAN
    for n, t in enumerate(kept):
        b, _ = level.at(t)
        torch.testing.assert_close(points[:, n], b * MEAN + level.all_the_way(999, 40, t) * u)
    torch.testing.assert_close(end, MEAN + level.all_the_way(999, 40) * u)


def test_the_path_loss_vanishes_at_the_paths_map_and_pulls_a_shift_back(bundle):
    """By pseudo-Huber, whose gradient is theta / sqrt(theta^2 + h^2)."""
    h = 0.2
    settings = Distillation(prediction_type="epsilon", weight=1.0, huber_h=h)
    system = CMT(bundle, settings, Paths(steps=25, points=5))
    level = Level(system.schedule)
    system, students = solved(system, lambda t: level.all_the_way(t, 40))
    noise = torch.randn(40, *system.bundle.latent_shape(), generator=torch.Generator().manual_seed(0),
                        dtype=torch.float64)
    kept, cond = kept_timesteps(25, 5, 1000), torch.zeros(40, 32)
    points, end = roll_out(system.guided_teacher(cond), system.schedule, noise, 25, kept)
    batch = TrajectoryBatch(system.codec.denormalise(end), cond, None, ["x"] * 40, ["y"] * 40, points_BPCTF=points,
                            timesteps_P=torch.tensor(kept))
    for by in (0.0, 0.3):
        theta = shifted(system, students, "online", by)
        loss, parts, _ = system.objective(batch, end, cond, torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(loss, theta)
        root = (by**2 + h**2) ** 0.5
        assert float(loss) == pytest.approx(root - h, abs=1e-5) == float(parts["loss_path"])
        assert float(gradient) == pytest.approx(by / root, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pure_noise_has_the_share_that_is_asked_for_and_the_other_points_the_rest_evenly(bundle, share):
    system = CMT(bundle, Distillation(**SETTINGS), Paths(steps=50, points=5, top_share=share))
    kept, n = kept_timesteps(50, 5, 1000), 4000
    seen: list[Tensor] = []

    def f(z: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        seen.append(t_B)
        assert torch.equal(z[:, 0, 0, 0], t_B.float()), "each point with its own timestep"
        return z

    system.consistency = lambda which: f
    points = torch.tensor(kept).float()[None, :, None, None, None].expand(n, 5, 1, 1, 1)
    batch = TrajectoryBatch(torch.zeros(n, 1, 1, 1), torch.zeros(n, 32), None, ["x"] * n, ["y"] * n,
                            points_BPCTF=points, timesteps_P=torch.tensor(kept))
    system.objective(batch, torch.zeros(n, 1, 1, 1), batch.text_BD, torch.Generator().manual_seed(0))
    found = [float((seen[0] == t).float().mean()) for t in kept]
    assert found == pytest.approx([share, *[(1 - share) / 4] * 4], abs=0.03)


def test_a_path_objective_refuses_recordings_and_paths_that_cannot_be(bundle):
    system = CMT(bundle, Distillation(**SETTINGS))
    batch = LatentBatch(torch.zeros(1, 4, 4, 4), torch.zeros(1, 32), None, ["a"], ["x"])
    with pytest.raises(MusiccmError, match=r"trajectories_dir.*found recordings"):
        system.objective(batch, torch.zeros(1), batch.text_BD, torch.Generator())
    for paths, said in ((Paths(points=51), "paths.points: expected at most paths.steps = 50"),
                        (Paths(count=0), "paths.count"), (Paths(top_share=2.0), "paths.top_share"),
                        (Paths(points=1), "paths.top_share: expected 1")):
        with pytest.raises(MusiccmError, match=said):
            CMT("no-such-bundle", paths=paths)
    with pytest.raises(MusiccmError, match="audio_condition_share: expected 0"):
        CMT("no-such-bundle", Distillation(audio_condition_share=0.5))
