"""MusicCM: consistency distillation with an adversarial discriminator (arXiv 2404.13358)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition, check_skip, jump_to_target, sample_grid_index
from musiccm.losses.distillation import distillation_loss
from musiccm.systems.adversary import AdversarialSystem
from musiccm.systems.distillation import normal_like
from musiccm.systems.parallel import own_rows
from musiccm.systems.settings import Adversarial, Distillation, Optimization


class MusicCM(AdversarialSystem):
    """Distills the teacher of a bundle into a few-step student (MusicCM, arXiv 2404.13358).

    The loss is `L_G + lambda L_distil`: the student must give the same answer along a trajectory of its guided teacher,
    and its decoded answer must pass for the teacher's data.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: `L_distil` and the student.
        adversarial: `L_G` and the discriminator.
        optimization: optimizer of the student.
        seed: seed of timesteps, noise and crops.
        teacher: the denoiser that teaches; the bundle's by default.
    """

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        adversarial: Adversarial | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(
            adversarial or Adversarial(), bundle=bundle, distillation=distillation or Distillation(),
            optimization=optimization or Optimization(), seed=seed, teacher=teacher,
        )
        for phase in self.distillation.curriculum:
            if phase.jumps != "to_zero":
                check_skip(phase.skip, self.grid)
        self.finish_init()

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """`lambda L_distil`, and `L_G` from `adversarial.start_step` on."""
        x0_pred, loss_distil, parts = self.distil(z0, cond_BD, generator)
        loss = self.distillation.weight * loss_distil
        term = self.adversarial_term(z0, x0_pred, batch.text_BD, generator)
        if term is not None:
            loss = loss + self.adversarial.weight * term["loss_g"]
            parts["loss_g"] = term["loss_g"].detach()
        return loss, parts, term

    def distil(self, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> tuple[Tensor, Tensor, dict]:
        """`L_distil` over the student's grid. Returns the student's x0, the loss and its parts."""
        settings, phase = self.distillation, self.distillation.phase(self._progress())
        mode, tail = settings.timestep_mode, settings.tail
        index = own_rows(lambda n: sample_grid_index(n, len(self.grid), generator, mode, tail), len(z0))
        t_B = self.grid[index].to(z0.device)
        z = self.schedule.add_noise(z0, normal_like(z0, generator), t_B)
        with torch.no_grad():
            teacher = self.guided_teacher(cond_BD)
            z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, phase.skip, phase.jumps, settings.solver)
            clean = phase.jumps == "to_zero"
            target = z_hat if clean else self.consistency("target")(z_hat, t_next_B, cond_BD)
        x0_pred = self.consistency("online")(z, t_B, cond_BD)
        loss, parts = distillation_loss(x0_pred, target, settings.distance, settings.huber_h)
        return x0_pred, loss, parts

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the slow average is from its own answer one guided teacher jump further on; fixed noise."""
        # Keyed by clip, so that the figure depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        z0 = self.codec.normalise(batch.latents_BCTF)
        t_B = self.grid[torch.cat([sample_grid_index(1, len(self.grid), g) for g in generators])].to(z0.device)
        noise = torch.stack([torch.randn(z0.shape[1:], generator=g) for g in generators]).to(z0.device)
        z = self.schedule.add_noise(z0, noise, t_B)
        f = self.consistency("slow")
        teacher = self.guided_teacher(batch.text_BD)
        phase, settings = self.distillation.phase(1.0), self.distillation
        # A jump to clean may have any size; one on the grid is needed here, where the student answers at both ends.
        skip = int(self.grid[0]) + 1 if phase.jumps == "to_zero" else phase.skip
        z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, skip)
        loss, _ = distillation_loss(
            f(z, t_B, batch.text_BD), f(z_hat, t_next_B, batch.text_BD), settings.distance, settings.huber_h
        )
        self.log("val/loss_distil", loss, batch_size=len(batch), sync_dist=True)
