"""Phased consistency (PCM, arXiv 2405.18407): a trajectory is cut into phases, and consistency holds within each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.device import sent
from musiccm.diffusion import AnyCondition, ddim_jump, expand_to, jump_to_target, predict_at, sampling_timesteps
from musiccm.errors import MusiccmError
from musiccm.samplers import HeldFrames, make_sampler
from musiccm.systems.lcm import LCM
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Distillation, Optimization, Phase

#: Options of callbacks that say at how many steps a student is sampled.
STEPS = ("steps", "val_steps")


@dataclass
class Phased:
    """The objective's own settings.

    Args:
        phases: number of phases; their upper edges are the timesteps at which as many sampling steps are made.
    """

    phases: int = 4

    def check(self) -> None:
        """Refuse a number that is none.

        Raises:
            MusiccmError: it is not a whole number above 0.
        """
        check_ranges("phased.", vars(self), count="phases")


class PCM(LCM):
    """Distills a student that goes from any point of a phase to the phase's lower edge in one step.

    The map is one step of the deterministic sampler, `F(z_t, t) = alpha_s x0 + sigma_s eps` with
    `eps = (z_t - alpha_t x0) / sigma_t`, to the edge s of t's phase. The loss is
    `E d(F(z_t, t), F_target(z_hat, t'))`, where z_hat is where the guided teacher's jumps end: at `t' = t - k`, or at
    the edge if that comes first, where F returns its input. Each phase is a shorter way than the whole trajectory, and
    nothing random lies between two of them.

    Sampled by as many steps as there are phases, without fresh noise (`ddim`). Fewer or more would ask the network for
    jumps that it was never taught. The paper's adversarial loss in latents is left out (docs/objectives/pcm.md).

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the loss and the student; `jumps` must be numbers.
        phased: the phases.
        optimization: optimizer of the student.
        seed: seed of timesteps and noise.
        teacher: the denoiser that teaches; the bundle's by default.
    """

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        phased: Phased | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(bundle, distillation, optimization, seed, teacher)
        self.phased = phased or Phased()
        #: Upper edges, ascending; the phase below the lowest ends at clean.
        self.edges = sampling_timesteps(self.phased.phases, self.grid).flip(0)

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse jumps to clean, and more phases than the grid has points.

        Raises:
            MusiccmError: names the key.
        """
        super().check_settings(own)
        phased = own["phased"] or Phased()
        phased.check()
        if phased.phases > self.distillation.grid_points:
            raise MusiccmError(f"phased.phases: expected at most distillation.grid_points = "
                               f"{self.distillation.grid_points}, found {phased.phases}.")
        if any(not isinstance(phase.jumps, int) for phase in self.distillation.curriculum):
            raise MusiccmError("distillation.curriculum: expected jumps to be a whole number for phased consistency, "
                               "whose targets lie at the phases' edges and not at clean, found 'to_zero'.")

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse callbacks that would sample the student at other steps than its phases, or with fresh noise.

        Raises:
            MusiccmError: names the callback's option.
        """
        super().check_experiment(experiment)
        settings = experiment["model"].get("init_args") or {}
        phases = (settings.get("phased") or {}).get("phases", Phased().phases)
        for callback in experiment["trainer"].get("callbacks") or []:
            name, given = callback.get("class_path", "").rpartition(".")[-1], callback.get("init_args") or {}
            if "sampler" not in given and "steps" not in given:
                continue
            sampler = make_sampler(given.get("sampler") or "lcm", given.get("gamma"))
            if getattr(sampler, "gamma", 0.0) != 0:
                raise MusiccmError(f"{name}.sampler: expected one without fresh noise for phased consistency, such as "
                                   f"ddim, found {sampler}.")
            for key in STEPS:
                if other := sorted(set(given.get(key) or []) - {phases}):
                    raise MusiccmError(f"{name}.{key}: expected [{phases}], the student's phases "
                                       f"(model.init_args.phased.phases), found {other} too: it is taught no jump that "
                                       "these would ask for.")

    def edge_of(self, t_B: Tensor) -> Tensor:
        """The lower edge of the phase that timesteps above 0 lie in: an edge belongs to the phase below it."""
        lower = sent(torch.cat([torch.zeros(1, dtype=torch.long), self.edges[:-1]]), t_B.device)
        return lower[torch.searchsorted(lower, t_B) - 1]

    def to_edge(
        self, which: str, z: Tensor, t_B: Tensor, s_B: Tensor, cond_BD: AnyCondition, held: HeldFrames | None = None
    ) -> Tensor:
        """F: where one step of the deterministic sampler takes latents; those at the edge stay.

        Args:
            which: of the student's weights, see `denoiser`.
            z: noisy latents.
            t_B: their timesteps.
            s_B: where to go.
            cond_BD: conditions.
            held: frames that are seen clean.

        Returns:
            Latents at `s_B`.
        """
        f = self.consistency(which) if held is None else held.of(self.consistency(which))
        # those that have arrived go through the network for the batch's shape alone, at a time that it knows
        asked_B = torch.where(t_B > s_B, t_B, sent(self.grid[0], t_B.device))
        x0, eps = predict_at(lambda z, t: f(z, t, cond_BD), self.schedule, z, asked_B)
        return torch.where(expand_to(t_B > s_B, z), ddim_jump(self.schedule, x0, eps, s_B), z)

    def both_ends(
        self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition, phase: Phase, solver: str, online: str, target: str,
        held: HeldFrames | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The student's answers at the edge of the phase: from z, and from where the teacher's jumps within it end."""
        s_B = self.edge_of(t_B)
        with torch.no_grad():
            teacher = self.guided_teacher(cond_BD, held)
            z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, phase.skip, phase.jumps, solver, s_B)
            wanted = self.to_edge(target, z_hat, t_next_B, s_B, cond_BD, held)
        return self.to_edge(online, z, t_B, s_B, cond_BD, held), wanted
