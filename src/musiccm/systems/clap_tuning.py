"""CLAP tuning of a student (the last stage of ConsistencyTTA, arXiv 2309.10740) over consistency distillation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition
from musiccm.systems.clap_tuned import ClapTerm, ClapTunedSystem
from musiccm.systems.lcm import LCM
from musiccm.systems.settings import Distillation, Optimization


class ClapTuning(ClapTunedSystem, LCM):
    """Goes on with a student by consistency distillation and a loss by CLAP on its sound.

    The loss is `lambda L_distil + weight E (2 - cos(gen, text) - cos(gen, real))`, of CLAP's embeddings of the
    student's decoded answers, their captions and the real clips. `distillation.start` names the student.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: `L_distil` and the student.
        clap: the loss by CLAP.
        optimization: optimizer of the student.
        seed: seed of timesteps and noise.
        teacher: the denoiser that teaches; the bundle's by default.
    """

    default_clap: ClassVar[ClapTerm] = ClapTerm()

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        clap: ClapTerm | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(clap, bundle=bundle, distillation=distillation, optimization=optimization, seed=seed,
                         teacher=teacher)
        self.finish_init()

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """`lambda L_distil` and the CLAP term."""
        x0_pred, loss_distil, parts = self.distil(z0, cond_BD, generator)
        loss_clap, more = self.clap_term(batch, z0, x0_pred, cond_BD, generator)
        return self.distillation.weight * loss_distil + loss_clap, parts | more, None
