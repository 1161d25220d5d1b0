"""The student's timesteps: the training grid, draws from it, and the sampling schedules picked from it."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.bounds import check_student_steps
from musiccm.errors import MusiccmError

TIMESTEP_MODES = ("uniform", "stratified")
#: How the points of a student's grid lie: at whole timesteps, or at equal distances from clean (0) to the noisiest one.
GRIDS = ("even", "linspace")


def student_grid(
    num_train_timesteps: int = 1000, points: int = 50, kind: str = "even", where: str = "grid points"
) -> Tensor:
    """The timesteps that the student is trained on: 19, 39, ..., 999 for 50 points of 1000.

    Below the lowest point lies clean, where no student is asked. ConsistencyTTA's 18 points (arXiv 2309.10740) are
    `linspace(0, 999, 18)` with clean among them: 17 points of kind `linspace`, 58.76, 117.53, ..., 999.

    Args:
        num_train_timesteps: number of noise levels of the teacher.
        points: grid points N. Of kind `even` it must divide `num_train_timesteps`, so that all points are whole and the
            last one is the noisiest level.
        kind: one of `GRIDS`.
        where: the key that states `points`, for the error.

    Returns:
        Ascending timesteps, `[points]`, on the CPU: int64 of kind `even`, float32 of kind `linspace`.

    Raises:
        MusiccmError: if `kind` is unknown, or the grid cannot have so many points.
    """
    if kind not in GRIDS:
        raise MusiccmError(f"grid: expected one of {', '.join(GRIDS)}, found {kind!r}.")
    if kind == "linspace":
        top = num_train_timesteps - 1
        if not 1 <= points <= top:
            raise MusiccmError(f"{where}: expected 1 to {top} of a linspace grid, found {points}.")
        # divided in float64, so that each is the float32 next to its value on every machine
        return (torch.arange(1, points + 1, dtype=torch.float64) * top / points).float()
    if points < 1 or num_train_timesteps % points:
        raise MusiccmError(
            f"{where}: expected a divisor of num_train_timesteps = {num_train_timesteps}, found {points}. "
            "Choose another number of points, such as 50, or a grid of kind linspace."
        )
    spacing = num_train_timesteps // points
    return torch.arange(1, points + 1) * spacing - 1


def sample_grid_index(
    batch: int, points: int, generator: torch.Generator, mode: str = "stratified", tail: float = 0.0
) -> Tensor:
    """Draw training grid indices, optionally with extra mass on the top one.

    Args:
        batch: number of draws B.
        points: number of grid points N.
        generator: source of randomness; draws are made on its device.
        mode: `uniform` (independent draws) or `stratified` (one draw in each of B equal parts of the distribution, in
            random order: each index has the same probability, and a batch's mix of noise levels varies less).
        tail: probability mass in [0, 1] moved to the top point, the only one that one-step sampling uses. That point
            is drawn with probability `tail + (1 - tail)/N`.

    Returns:
        int64 indices in 0 .. N - 1, `[B]`.

    Raises:
        MusiccmError: if `mode` or `tail` is not as described.
    """
    if mode not in TIMESTEP_MODES:
        raise MusiccmError(f"timestep sampling mode: expected 'uniform' or 'stratified', found {mode!r}.")
    if not 0.0 <= tail <= 1.0:
        raise MusiccmError(f"tail: expected a probability between 0 and 1, found {tail}.")
    u = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    if mode == "stratified":
        # Shuffled, so that a sample's place in the batch says nothing of its noise level.
        order = torch.randperm(batch, generator=generator, device=generator.device)
        u = (order + u) / batch
    # Inverse of the cumulative distribution: [0, 1 - tail) is spread over the grid, the rest is the top point.
    spread = (u / max(1.0 - tail, 1e-12) * points).floor()
    return spread.clamp_max(points - 1).long()


def sampling_timesteps(steps: int, grid: Tensor) -> Tensor:
    """Evenly spaced sampling schedule picked from the training grid, as diffusers' `LCMScheduler` picks it.

    With the 50-point grid: 1 step [999]; 2 [999, 499]; 4 [999, 759, 499, 259].

    Args:
        steps: number of sampling steps, 1 .. len(grid).
        grid: ascending training grid.

    Returns:
        Descending timesteps, `[steps]`, starting at the top of the grid.

    Raises:
        MusiccmError: if `steps` is outside that range.
    """
    points = grid.numel()
    check_student_steps(steps, points)
    # Integer arithmetic: floor(i * N / steps) without the rounding of a float linspace.
    index = torch.arange(steps) * points // steps
    return grid.flip(0)[index.to(grid.device)]


def check_skip(skip: int, grid: Tensor) -> int:
    """Refuse a solver jump that would land the target between two grid points, where the student is never trained.

    Args:
        skip: jump size k in training timesteps.
        grid: ascending, evenly spaced training grid.

    Returns:
        `skip` unchanged.

    Raises:
        MusiccmError: if it is not a positive multiple of the grid's spacing, or the grid's points are not whole.
    """
    if grid.is_floating_point():
        raise MusiccmError(f"skip: expected a grid of kind even, whose spacing is whole, for jumps of {skip} training "
                           "timesteps; found one of kind linspace.")
    spacing = int(grid[0]) + 1
    if skip < spacing or skip % spacing:
        raise MusiccmError(
            f"skip: expected a positive multiple of the grid spacing {spacing}, found {skip}. Any skip may be "
            "used with jumps='to_zero', whose target is clean."
        )
    return skip
