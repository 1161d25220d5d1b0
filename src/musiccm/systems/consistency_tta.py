"""ConsistencyTTA (arXiv 2309.10740): the same answer at both ends of each interval of the student's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import AnyCondition, expand_to, sample_grid_index, solver_jump
from musiccm.errors import MusiccmError
from musiccm.losses.denoising import min_snr_weight
from musiccm.losses.distillation import distillation_loss
from musiccm.systems.clap_tuned import ClapTerm, ClapTunedSystem
from musiccm.systems.parallel import normal_like, own_rows
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Distillation, Optimization, Phase

WEIGHTINGS = ("snr", "uniform", "tail")
LOWEST = ("data", "solver")


@dataclass
class Intervals:
    """The objective's own settings; the defaults are ConsistencyTTA's.

    Args:
        weighting: of an item's loss: `snr` is `min(SNR, snr_bound)` at its timestep, where `SNR = alpha^2 / sigma^2`;
            `uniform` is 1; `tail` is `tail_weight` at the top grid point, where one-step sampling starts, and 1 at the
            others. (`distillation.tail` draws the top point more often, under any weighting.)
        snr_bound: of `snr`.
        tail_weight: of `tail`.
        lowest: what the student is to say at the lowest grid point: `data`, the clip's own latents, or `solver`, where
            the teacher's jump from there ends.
        pure_noise: whether the input at the top grid point is noise alone, as it is when the student is sampled; if
            not, the clip's latents show through it by alpha.
    """

    weighting: str = "snr"
    snr_bound: float = 5.0
    tail_weight: float = 5.0
    lowest: str = "data"
    pure_noise: bool = True

    def check(self) -> None:
        """Refuse what would only be refused at the first step.

        Raises:
            MusiccmError: an unknown name or a number out of range.
        """
        for key, known in {"weighting": WEIGHTINGS, "lowest": LOWEST}.items():
            if getattr(self, key) not in known:
                found = getattr(self, key)
                raise MusiccmError(f"intervals.{key}: expected one of {', '.join(known)}, found {found!r}.")
        check_ranges("intervals.", vars(self), positive="snr_bound tail_weight")


class Answers(NamedTuple):
    """What the student says at the upper ends of intervals, what it is to say, and how much that weighs.

    Args:
        x0: the student's answers.
        target: without a gradient.
        weight_B: an item's weight in the loss; None where all are alike.
    """

    x0: Tensor
    target: Tensor
    weight_B: Tensor | None


class ConsistencyTTA(ClapTunedSystem):
    """Distills by jumps of the guided teacher from each grid point to the next lower one.

    `L = lambda E w(t) d(f(z_t, t), f_target(z_hat, t'))`, where one step of the solver takes z_t to z_hat at t', the
    grid point below. At the top point z_t is noise alone. Below the lowest point lies clean, where the target is the
    clip itself or where the solver ends. In ConsistencyTTA's own form the student predicts x0 (`prediction_type:
    sample`), d is squared, the solver Heun's and w = min(SNR, 5); the consistency boundary, which it has none of,
    changes nothing above t = 1. With `clap` it is the paper's last stage, in which w weighs an item's CLAP loss too.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the loss and the student. There is no `curriculum`: jumps are the grid's.
        intervals: targets and weights.
        clap: a loss by CLAP beside it; none by default.
        optimization: optimizer of the student.
        seed: seed of timesteps and noise.
        teacher: the denoiser that teaches; the bundle's by default.

    Raises:
        MusiccmError: settings out of range, or weights that leave nothing of the point where sampling starts.
    """

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        intervals: Intervals | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
        clap: ClapTerm | None = None,
    ) -> None:
        super().__init__(clap, bundle=bundle, distillation=distillation or Distillation(),
                         optimization=optimization or Optimization(), seed=seed, teacher=teacher)
        self.intervals = intervals or Intervals()
        #: Where the jump from each grid point lands.
        self.lower = torch.cat([self.grid.new_zeros(1), self.grid[:-1]])
        if self.intervals.weighting == "snr" and not self.schedule.alpha(self.grid[-1:]).all():
            raise MusiccmError("intervals.weighting: expected uniform or tail, as the teacher's noise process ends in "
                               "pure noise, which snr gives no weight, found 'snr'.")
        self.finish_init()

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse settings of its own that are none, and a curriculum.

        Raises:
            MusiccmError: names the key.
        """
        super().check_settings(own)
        (own.get("intervals") or Intervals()).check()
        if self.distillation.curriculum != [Phase()]:
            raise MusiccmError("distillation.curriculum: expected none, as the jumps of ConsistencyTTA are from one "
                               "grid point to the next; choose distillation.grid_points and leave the key out.")

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """`lambda L`, and the CLAP term."""
        found = self.answers(z0, cond_BD, generator)
        loss, parts = self.loss(found)
        loss_clap, more = self.clap_term(batch, z0, found.x0, cond_BD, generator, found.weight_B)
        return self.distillation.weight * loss + loss_clap, parts | more, None

    def loss(self, found: Answers) -> tuple[Tensor, dict[str, Tensor]]:
        """`L` and its part for the log."""
        settings = self.distillation
        return distillation_loss(found.x0, found.target, settings.distance, settings.huber_h, found.weight_B)

    def answers(self, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> Answers:
        """Student and target at intervals that are drawn, one an item."""
        mode, tail = self.distillation.timestep_mode, self.distillation.tail
        index_B = own_rows(lambda n: sample_grid_index(n, len(self.grid), generator, mode, tail), len(z0))
        noise = normal_like(z0, generator)
        return self.at(index_B, z0, noise, cond_BD, self.distillation.solver, "online", "target")

    def at(
        self, index_B: Tensor, z0: Tensor, noise: Tensor, cond_BD: AnyCondition, solver: str, online: str, target: str
    ) -> Answers:
        """Student and target at given intervals.

        Args:
            index_B: grid points at the upper ends, on the CPU.
            z0: clean latents, normalised.
            noise: of the same shape.
            cond_BD: conditions.
            solver: of the jump.
            online: which of the student's weights answer at the upper end, see `denoiser`; gradients flow through them.
            target: which answer at the lower end.

        Returns:
            Both answers, and the items' weights.
        """
        t_B, t_next_B = (sent(points[index_B], z0.device) for points in (self.grid, self.lower))
        z = self.schedule.add_noise(z0, noise, t_B)
        if self.intervals.pure_noise:
            z = torch.where(expand_to(t_B == float(self.grid[-1]), z), noise.to(z.dtype), z)
        with torch.no_grad():
            z_hat = solver_jump(self.guided_teacher(cond_BD), self.schedule, z, t_B, t_next_B, solver)
            # at clean it is z_hat itself, by the boundary
            wanted = self.consistency(target)(z_hat, t_next_B, cond_BD)
            if self.intervals.lowest == "data":
                wanted = torch.where(expand_to(t_next_B <= 0, wanted), z0.to(wanted.dtype), wanted)
        return Answers(self.consistency(online)(z, t_B, cond_BD), wanted, self.weights(t_B))

    def weights(self, t_B: Tensor) -> Tensor | None:
        """An item's weight by its timestep; None where all are alike."""
        own = self.intervals
        if own.weighting == "uniform":
            return None
        if own.weighting == "tail":
            return 1.0 + (own.tail_weight - 1.0) * (t_B == float(self.grid[-1]))
        return min_snr_weight(self.schedule.alpha(t_B), self.schedule.sigma(t_B), own.snr_bound, "sample")

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the slow average is from its own answer one DDIM interval further on; fixed noise, all alike."""
        # Keyed by clip, so that the figure depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        z0 = self.codec.normalise(batch.latents_BCTF)
        index_B = torch.cat([sample_grid_index(1, len(self.grid), g) for g in generators])
        noise = torch.stack([torch.randn(z0.shape[1:], generator=g) for g in generators]).to(z0.device)
        found = self.at(index_B, z0, noise, self.default_condition(batch), "ddim", "slow", "slow")
        loss, _ = self.loss(found._replace(weight_B=None))
        self.log("val/loss_distil", loss, batch_size=len(batch), sync_dist=True)
