"""Angle schedules, rotations and angles that change along time."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from gaussian import MUSICLDM, Gaussian

from musiccm.diffusion import (
    ANGLE_SCHEDULES,
    Angle,
    NoiseProcess,
    NoiseSchedule,
    RectifiedFlow,
    angle_timesteps,
    ddim_jump,
    noised_at,
    rotate,
    schedule_angles,
    spread_chunks,
    to_x0,
)
from musiccm.errors import MusiccmError
from musiccm.samplers import Ddim, Heun, make_sampler, student_stepper, teacher_stepper

PROCESSES = [Angle(), RectifiedFlow(), RectifiedFlow(shift=3.0), NoiseSchedule.from_config(MUSICLDM)]


def paper_steps(steps: int, kind: str) -> list[Fraction]:
    """The steps of MeLoDy's section 4.3 from the noisiest on, in units of pi."""
    if kind == "uniform":
        return [Fraction(1, 2 * steps)] * steps
    return [Fraction(1, 6 * steps) + Fraction(2 * t, 3 * steps * (steps + 1)) for t in range(steps, 0, -1)]


@pytest.mark.parametrize("kind", ANGLE_SCHEDULES)
def test_steps_are_the_papers_and_sum_to_a_quarter_turn(kind: str) -> None:
    for steps in range(1, 101):
        expected = paper_steps(steps, kind)
        assert sum(expected) == Fraction(1, 2)
        angles = [*schedule_angles(steps, kind), 0.0]
        assert angles[0] == math.pi / 2
        found = [a - b for a, b in zip(angles, angles[1:], strict=False)]
        assert found == pytest.approx([float(w) * math.pi for w in expected], abs=1e-14)
        assert math.fsum(found) == pytest.approx(math.pi / 2, abs=2e-16)


def test_the_papers_table_of_first_and_last_steps() -> None:
    for steps, first, last in ((5, 0.454, 0.175), (10, 0.243, 0.071), (20, 0.126, 0.031)):
        angles = schedule_angles(steps, "proposed")
        assert (angles[0] - angles[1], angles[-1]) == pytest.approx((first, last), abs=6e-4)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(MusiccmError, match="uniform, proposed"):
        schedule_angles(4, "cosine")
    for steps in (0, -1, 1.5, True):
        with pytest.raises(MusiccmError, match="steps"):
            schedule_angles(steps, "uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ANGLE_SCHEDULES)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_timesteps_are_where_the_angles_are(process: NoiseProcess, kind: str) -> None:
    whole = isinstance(process, NoiseSchedule)
    for steps in (1, 2, 5, 10, 20, 50):
        t = torch.tensor(angle_timesteps(process, steps, kind), dtype=torch.float64)
        assert t[0] == process.num_train_timesteps - 1 and t[-1] > 0 and (t.diff() < 0).all()
        at = t.long() if whole else t
        found = torch.atan2(process.sigma(at, torch.float64), process.alpha(at, torch.float64))
        asked = torch.tensor(schedule_angles(steps, kind), dtype=torch.float64)
        if not whole:
            torch.testing.assert_close(found, asked, atol=1e-12, rtol=0)
            continue
        # no other whole timestep is nearer, but where the table ends: above clean, and short of pure noise
        every = torch.arange(1, 1000)
        known = torch.atan2(process.sigma(every, torch.float64), process.alpha(every, torch.float64))
        inside = asked > known[steps]
        nearest = (known - asked[inside][:, None]).abs().min(dim=1).values
        torch.testing.assert_close((found - asked).abs()[inside], nearest)


def test_more_steps_than_noise_levels_are_refused() -> None:
    with pytest.raises(MusiccmError, match="500 by the angle schedule 'proposed'.*fewer steps"):
        angle_timesteps(Angle(), 500, "proposed")
    with pytest.raises(MusiccmError, match="fewer steps"):
        angle_timesteps(NoiseSchedule.from_config(MUSICLDM | {"num_train_timesteps": 20}), 25, "uniform")


@pytest.mark.parametrize("kind", ANGLE_SCHEDULES)
def test_a_rotation_is_the_jump_of_ddim(kind: str) -> None:
    process = Angle()
    z, v = torch.randn(2, 3, 16, 5, 1, dtype=torch.float64).unbind(0)
    t = torch.tensor([*angle_timesteps(process, 10, kind), 0.0], dtype=torch.float64)
    angle = torch.tensor([*schedule_angles(10, kind), 0.0], dtype=torch.float64)
    for step in range(10):
        cos, sin = torch.cos(angle[step]), torch.sin(angle[step])
        x0, eps = cos * z - sin * v, sin * z + cos * v
        expected = ddim_jump(process, x0, eps, t[step + 1].expand(3))
        torch.testing.assert_close(rotate(z, v, angle[step] - angle[step + 1]), expected, atol=1e-12, rtol=0)
        # and once more from the points of the circle themselves
        a, b = torch.cos(angle[step + 1]), torch.sin(angle[step + 1])
        torch.testing.assert_close(a * x0 + b * eps, expected, atol=1e-12, rtol=0)


def test_one_step_is_the_negative_velocity() -> None:
    """T = 1: from pure noise, where v = -x0, the whole quarter turn lands on -v."""
    z, v = torch.randn(2, 2, 16, 4, 1, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(rotate(z, v, math.pi / 2), -v, atol=1e-15, rtol=0)
    process = Angle()

    def denoise(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        dtype = torch.float64
        return to_x0("v_prediction", v, z, process.alpha(t, dtype), process.sigma(t, dtype))

    stepper = teacher_stepper(denoise, process, lambda n: torch.zeros(1, 2), 1, 1.0,
                              {"name": "ddim", "schedule": "angle_proposed"})
    torch.testing.assert_close(stepper.sample(torch.zeros(2, 2), z), -v, atol=0, rtol=0)


def posterior_factor(angles: list[float], std: float) -> float:
    """How a sampler of rotations scales what of z is not the mean, for N(mean, std^2): the product over its steps.

    By hand: with u = z - cos(d) mean, the velocity that regresses best is -sin(d) mean + k u,
    k = sin cos (1 - std^2) / (cos^2 std^2 + sin^2), and the rotation by w keeps cos(w) - k sin(w) of u.
    """
    factor = 1.0
    for d, below in zip(angles, [*angles[1:], 0.0], strict=True):
        k = math.sin(d) * math.cos(d) * (1 - std**2) / (math.cos(d) ** 2 * std**2 + math.sin(d) ** 2)
        factor *= math.cos(d - below) - k * math.sin(d - below)
    return factor


@pytest.mark.parametrize("kind", ANGLE_SCHEDULES)
def test_gaussian_data_are_sampled_as_the_closed_form_says(kind: str) -> None:
    data = Gaussian(Angle())
    noise = torch.randn(4, 3, 8, 1, dtype=torch.float64)
    for steps in (1, 4, 10):
        stepper = teacher_stepper(data.denoise, data.schedule, lambda n: torch.zeros(1, 2), steps, 1.0,
                                  {"name": "ddim", "schedule": f"angle_{kind}"})
        found = stepper.sample(torch.zeros(4, 2), noise)
        expected = data.mean + posterior_factor(schedule_angles(steps, kind), data.std) * noise
        # the sampler keeps its timesteps in float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # and with many steps as the data are distributed
    assert posterior_factor(schedule_angles(400, kind), data.std) == pytest.approx(data.std, rel=0.01)


def test_the_schedule_is_an_option_of_every_teachers_sampler_and_of_no_students() -> None:
    process = NoiseSchedule.from_config(MUSICLDM)
    for name in ("ddim", "heun", "dpm-solver++"):
        spec = {"name": name, "schedule": "angle_proposed"}
        assert make_sampler(spec).spec == spec and str(make_sampler(spec)) == f"{name}, schedule angle_proposed"
        assert make_sampler(name, schedule="angle_proposed").spec == spec
        # without one, all is as it was
        assert make_sampler(name).spec == {"name": name} and str(make_sampler(name)) == name
        found = teacher_stepper(lambda z, t, cond: z, process, lambda n: torch.zeros(1, 2), 10, 2.0, spec).timesteps
        assert found == angle_timesteps(process, 10, "proposed")
        usual = teacher_stepper(lambda z, t, cond: z, process, lambda n: torch.zeros(1, 2), 10, 2.0, name).timesteps
        assert usual == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    with pytest.raises(MusiccmError, match="training grid"):
        student_stepper(lambda z, t, cond: z, process, torch.arange(19, 1000, 20), 4, Ddim("angle_uniform"))
    with pytest.raises(MusiccmError, match="schedule: the sampler lcm has none; ddim, heun and dpm-solver"):
        make_sampler("lcm", schedule="trailing")
    with pytest.raises(MusiccmError, match="trailing, angle_uniform, angle_proposed"):
        Heun("cosine")


def test_chunks_have_the_frames_that_the_paper_gives_them() -> None:
    for frames, chunks in ((1280, 4), (2500, 4), (7, 3), (10, 10), (5, 1)):
        found = spread_chunks(torch.arange(chunks)[None].expand(2, -1), frames)
        expected = torch.empty(frames, dtype=torch.long)
        for m in range(1, chunks + 1):
            expected[(m - 1) * frames // chunks : m * frames // chunks] = m - 1
        assert torch.equal(found, expected.expand(2, -1))
    with pytest.raises(MusiccmError, match="1 to 3 chunks"):
        spread_chunks(torch.zeros(1, 4), 3)


def test_frames_at_angle_zero_are_clean_bit_by_bit_and_others_obey_the_identities() -> None:
    z0, eps = torch.randn(2, 2, 16, 12, 1, dtype=torch.float64).unbind(0)
    angle = spread_chunks(torch.tensor([[0.0, 0.3, 1.2, math.pi / 2], [0.7, 0.0, 0.0, 0.1]], dtype=torch.float64), 12)
    z, v = noised_at(z0, eps, angle)
    held = (angle == 0)[:, None, :, None].expand_as(z)
    assert torch.equal(z[held], z0[held]) and torch.equal(v[held], eps[held])
    cos, sin = torch.cos(angle)[:, None, :, None], torch.sin(angle)[:, None, :, None]
    torch.testing.assert_close(cos * z - sin * v, z0, atol=1e-12, rtol=0)
    torch.testing.assert_close(sin * z + cos * v, eps, atol=1e-12, rtol=0)
