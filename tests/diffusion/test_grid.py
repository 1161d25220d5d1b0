from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from gaussian import MUSICLDM

from musiccm.diffusion import check_skip, sample_grid_index, sampling_timesteps, student_grid
from musiccm.errors import MusiccmError

GRID = student_grid()


def test_grid() -> None:
    assert GRID.tolist() == list(range(19, 1000, 20))
    assert student_grid(200, 4).tolist() == [49, 99, 149, 199]
    with pytest.raises(MusiccmError, match="divisor"):
        student_grid(1000, 30)


def test_a_linspace_grid_is_numpys_without_its_clean_end():
    found = student_grid(1000, 17, "linspace")
    assert found.dtype == torch.float32 and found.tolist() == np.linspace(0, 999, 18).astype(np.float32)[1:].tolist()
    assert sampling_timesteps(4, found).tolist() == [found[i].item() for i in (16, 12, 8, 4)]
    for points, kind, said in ((0, "linspace", "1 to 999"), (1000, "linspace", "1 to 999"), (17, "odd", "of even, ")):
        with pytest.raises(MusiccmError, match=said):
            student_grid(1000, points, kind)
    with pytest.raises(MusiccmError, match="skip: expected a grid of kind even"):
        check_skip(59, found)


@pytest.mark.parametrize(("steps", "expected"), [(1, [999]), (2, [999, 499]), (4, [999, 759, 499, 259])])
def test_schedules_of_the_paper(steps: int, expected: list[int]) -> None:
    assert sampling_timesteps(steps, GRID).tolist() == expected


def test_every_schedule_equals_diffusers() -> None:
    scheduler = LCMScheduler.from_config({**MUSICLDM, "original_inference_steps": 50})
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert sampling_timesteps(steps, GRID).tolist() == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize("steps", [0, 51, -1, 2.0, True])
def test_impossible_step_counts_are_refused(steps: object) -> None:
    with pytest.raises(MusiccmError, match="from 1 to 50"):
        sampling_timesteps(steps, GRID)  # type: ignore[arg-type]


def test_skip_must_land_on_the_grid() -> None:
    assert check_skip(100, GRID) == 100
    for bad in (0, 10, 250):
        with pytest.raises(MusiccmError, match="multiple of the grid spacing 20"):
            check_skip(bad, GRID)


@pytest.mark.parametrize("mode", ["uniform", "stratified"])
@pytest.mark.parametrize("tail", [0.0, 0.25, 1.0])
def test_draws_follow_the_stated_distribution(mode: str, tail: float) -> None:
    points, draws = 10, 40_000
    index = sample_grid_index(draws, points, torch.Generator().manual_seed(0), mode, tail)
    share = torch.bincount(index, minlength=points) / draws
    expected = torch.full((points,), (1 - tail) / points)
    expected[-1] += tail
    # Five standard deviations of a binomial share.
    tolerance = 5 * (expected * (1 - expected) / draws).sqrt() + 1e-6
    assert bool(((share - expected).abs() <= tolerance).all())


def test_stratified_covers_the_grid_in_random_order() -> None:
    index = sample_grid_index(50, 50, torch.Generator().manual_seed(0), "stratified")
    assert sorted(index.tolist()) == list(range(50))
    assert index.tolist() != list(range(50))
    again = sample_grid_index(50, 50, torch.Generator().manual_seed(0), "stratified")
    assert torch.equal(index, again)


def test_bad_sampling_arguments_are_refused() -> None:
    with pytest.raises(MusiccmError, match="mode"):
        sample_grid_index(2, 5, torch.Generator(), "random")
    with pytest.raises(MusiccmError, match="tail"):
        sample_grid_index(2, 5, torch.Generator(), tail=1.5)
