"""MusicCM: consistency distillation with an adversarial discriminator (arXiv 2404.13358)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition
from musiccm.systems.adversary import AdversarialSystem
from musiccm.systems.lcm import LCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization


class MusicCM(AdversarialSystem, LCM):
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
            adversarial or Adversarial(), bundle=bundle, distillation=distillation, optimization=optimization,
            seed=seed, teacher=teacher,
        )
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
