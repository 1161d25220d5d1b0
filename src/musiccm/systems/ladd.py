"""LADD: a GAN on the frozen teacher's own features of noised latents (arXiv 2403.12015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition, without_scale
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import ADVERSARIAL_LOSSES
from musiccm.models.acceleration.half import half_copy
from musiccm.models.denoiser import Denoiser
from musiccm.models.encoder_half import encoder_half, features, widths
from musiccm.systems.distillation import normal_like
from musiccm.systems.latent_critic import CriticSystem, RollOut
from musiccm.systems.settings import Adversarial, Distillation, Optimization


@dataclass
class Ladd(RollOut):
    """The objective's own settings; see `RollOut` for those it shares with others.

    Args:
        loss: `hinge` (ADD's, arXiv 2311.17042) or `non_saturating`.
    """

    loss: str = "hinge"

    def check(self, grid: Tensor, where: str = "ladd.") -> None:
        """Refuse what would stop the run later; see `RollOut.check`."""
        super().check(grid, where)
        if self.loss not in ADVERSARIAL_LOSSES:
            raise MusiccmError(f"{where}loss: expected one of {', '.join(ADVERSARIAL_LOSSES)}, found {self.loss!r}.")


class LADD(CriticSystem):
    """Trains a student by heads on its teacher's features alone: no score, no trajectory, no decoder.

    Samples and training latents are noised and given to the frozen lower half of the teacher's U-Net; a head on the
    output of each of its blocks tells them apart. How strongly they are noised decides what the heads can see:
    composition at high noise, detail at low.

    Start from a consistency student (`distillation.start`). Of `distillation` it reads the student's own settings,
    `weight` (of the adversarial loss), warm start and averages.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the student.
        ladd: the objective.
        optimization: optimizer of the student.
        seed: of all draws.
        teacher: the denoiser that warm start and validation ask; the features are those of the bundle's U-Net.

    Raises:
        MusiccmError: a setting is out of range, or the bundle has no text to condition on.
    """

    rules: Ladd
    kind = Ladd
    group: ClassVar[str] = "ladd"

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        ladd: Ladd | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(
            Adversarial(weight=0.0), bundle=bundle, distillation=distillation or Distillation(),
            optimization=optimization or Optimization(), seed=seed, teacher=teacher,
        )
        self.ladd = self.rules
        half = encoder_half(self.bundle.unet)
        self.frozen["features"] = Denoiser(half, self.schedule, self.bundle.prediction_type)
        self.heads = nn.ModuleList(self.make_head(width) for width in widths(self.bundle.unet))
        self.finish_init()

    def critics(self) -> Iterator[nn.Module]:
        """The heads."""
        yield self.heads

    def half_parts(self) -> dict[str, nn.Module]:
        """The teacher, and its lower half."""
        return super().half_parts() | {"features": half_copy(self.frozen["features"], [self.schedule])}

    def compiled_parts(self) -> list[nn.Module]:
        """As with any critic, and the teacher's lower half."""
        features: Any = self._part("features")
        return [*super().compiled_parts(), features.unet]

    def logits(self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """How real noisy latents look to each head, `[B, heads]`; gradients flow to the latents."""
        network: Any = self._part("features")
        _, found = features(network, z, t_B, without_scale(cond_BD))  # the teacher's own, which knows of none
        return torch.stack([head(maps) for head, maps in zip(self.heads, found, strict=True)], dim=1)

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The generator's loss, the mean over heads."""
        x = self.roll_out(z0, cond_BD, generator, trained=True)
        z, t_B, _ = self.noised(x, generator)
        logits = self.logits(z, t_B, cond_BD)
        loss = ADVERSARIAL_LOSSES[self.ladd.loss].generator(logits).mean()
        return self.distillation.weight * loss, {"loss_gan": loss.detach()}, None

    def critic_loss(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The heads' loss, the mean over heads, and the penalty of the real side."""
        kind = ADVERSARIAL_LOSSES[self.ladd.loss]
        with torch.no_grad():
            x = self.roll_out(z0, cond_BD, generator, trained=False)
        z, t_B, _ = self.noised(x, generator)
        z_real = self.schedule.add_noise(z0, normal_like(z0, generator), t_B)
        real = self.logits(z_real, t_B, cond_BD)
        loss = kind.fake(self.logits(z, t_B, cond_BD)).mean() + kind.real(real).mean()
        parts = {"loss_critic": loss.detach()}
        if self.ladd.r1_weight > 0:
            r1 = self.r1(real, lambda z: self.logits(z, t_B, cond_BD), z_real, generator)
            loss = loss + self.ladd.r1_weight * r1
            parts["r1"] = r1.detach()
        return loss, parts
