"""Latent consistency distillation (LCM, arXiv 2310.04378): the same answer all along a guided teacher's trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import AnyCondition, check_skip, jump_to_target, sample_grid_index, spread_chunks
from musiccm.errors import MusiccmError
from musiccm.losses.distillation import distillation_loss
from musiccm.losses.velocity import draw_held
from musiccm.samplers import HeldFrames
from musiccm.systems.distillation import DistilledSystem, normal_like
from musiccm.systems.parallel import own_rows
from musiccm.systems.settings import Distillation, Optimization, Phase


class LCM(DistilledSystem):
    """Distills the teacher of a bundle into a few-step student by consistency alone: no discriminator.

    `L_distil = E d(f(z_t, t), f_target(z_hat, t - k))`, where z_hat is where the guided teacher takes z_t in one or
    more jumps. The target network is an average of the student (`distillation.target_ema_decay`) or, with a decay of 0,
    the student itself as of the last step, without a gradient.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the loss and the student.
        optimization: optimizer of the student.
        seed: seed of timesteps and noise.
        teacher: the denoiser that teaches; the bundle's by default.
    """

    holds_frames = True

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(bundle, distillation or Distillation(), optimization or Optimization(), seed, teacher)
        for phase in self.distillation.curriculum:
            if phase.jumps != "to_zero":
                check_skip(phase.skip, self.grid)
        self.finish_init()

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse a grid between the timesteps, which jumps of whole ones do not land on.

        Raises:
            MusiccmError: names the key.
        """
        super().check_settings(own)
        if self.distillation.grid != "even":
            raise MusiccmError(f"distillation.grid: expected even, as jumps of {type(self).__name__} have whole "
                               f"timesteps, found {self.distillation.grid!r}. ConsistencyTTA jumps from point to point "
                               "of any grid.")

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """`lambda L_distil`."""
        _, loss, parts = self.distil(z0, cond_BD, generator)
        return self.distillation.weight * loss, parts, None

    def distil(self, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> tuple[Tensor, Tensor, dict]:
        """`L_distil` over the student's grid. Returns the student's x0, the loss and its parts."""
        settings, phase = self.distillation, self.distillation.phase(self._progress())
        mode, tail = settings.timestep_mode, settings.tail
        held = self.held_frames(z0, generator)
        index = own_rows(lambda n: sample_grid_index(n, len(self.grid), generator, mode, tail), len(z0))
        t_B = sent(self.grid[index], z0.device)
        z = self.schedule.add_noise(z0, normal_like(z0, generator), t_B)
        x0_pred, target = self.both_ends(z, t_B, cond_BD, phase, settings.solver, "online", "target", held)
        loss, parts = distillation_loss(x0_pred, target, settings.distance, settings.huber_h)
        return x0_pred, loss, parts

    def held_frames(self, z0: Tensor, generator: torch.Generator) -> HeldFrames | None:
        """What is held clean of a batch: the start of a share of it, or all round a hole; None where nothing is."""
        settings = self.distillation
        if not settings.continuation_share + settings.inpainting_share:
            return None
        held_BM = own_rows(lambda n: draw_held(n, settings.chunks, generator, settings.continuation_share,
                                               range(1, settings.chunks), settings.inpainting_share), len(z0))
        return HeldFrames(z0, sent(spread_chunks(held_BM, z0.shape[2]), z0.device))

    def both_ends(
        self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition, phase: Phase, solver: str, online: str, target: str,
        held: HeldFrames | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the student says of a point, and what it is to say: a network's answer where the teacher's jump lands.

        Args:
            z: noisy latents on the student's grid.
            t_B: their timesteps.
            cond_BD: conditions.
            phase: size and number of the jumps.
            solver: of the jumps.
            online: which of the student's weights answer at z, see `denoiser`; gradients flow through them.
            target: which answer where the jump lands.
            held: frames that all of them see clean, and leave so.

        Returns:
            Prediction and target, which has no gradient.
        """
        student, follower = (self.consistency(which) if held is None else held.of(self.consistency(which))
                             for which in (online, target))
        with torch.no_grad():
            teacher = self.guided_teacher(cond_BD, held)
            z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, phase.skip, phase.jumps, solver)
            clean = phase.jumps == "to_zero"
            wanted = z_hat if clean else follower(z_hat, t_next_B, cond_BD)
        return student(z, t_B, cond_BD), wanted

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the slow average is from its own answer one guided teacher jump further on; fixed noise."""
        # Keyed by clip, so that the figure depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        z0 = self.codec.normalise(batch.latents_BCTF)
        t_B = self.grid[torch.cat([sample_grid_index(1, len(self.grid), g) for g in generators])].to(z0.device)
        noise = torch.stack([torch.randn(z0.shape[1:], generator=g) for g in generators]).to(z0.device)
        z = self.schedule.add_noise(z0, noise, t_B)
        phase, settings = self.distillation.phase(1.0), self.distillation
        # A jump to clean may have any size; one on the grid is needed here, where the student answers at both ends.
        one = Phase(skip=int(self.grid[0]) + 1 if phase.jumps == "to_zero" else phase.skip)
        cond_BD = self.default_condition(batch)
        ends = self.both_ends(z, t_B, cond_BD, one, "ddim", "slow", "slow")
        loss, _ = distillation_loss(*ends, settings.distance, settings.huber_h)
        self.log("val/loss_distil", loss, batch_size=len(batch), sync_dist=True)
