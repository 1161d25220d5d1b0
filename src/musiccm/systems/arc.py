"""ARC: adversarial relativistic-contrastive training of a few-step student (arXiv 2505.08175)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import AnyCondition
from musiccm.errors import MusiccmError
from musiccm.losses.matching import ranking_loss
from musiccm.models.denoiser import Denoiser
from musiccm.models.encoder_half import encoder_half
from musiccm.systems.latent_critic import CriticSystem, RollOut
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Adversarial, Distillation, Optimization


@dataclass
class Arc(RollOut):
    """The objective's own settings; see `RollOut` for those it shares with others.

    Args:
        contrastive_weight: weight, in the discriminator's loss, of telling a clip's own caption from another's.
    """

    contrastive_weight: float = 1.0

    def check(self, grid: Tensor, where: str = "arc.") -> None:
        """Refuse what would stop the run later; see `RollOut.check`."""
        super().check(grid, where)
        check_ranges(where, vars(self), not_negative="contrastive_weight")


class ARC(CriticSystem):
    """Trains a student by a discriminator alone: its samples must pass for the training clips of the same captions.

    The discriminator is the lower half of the teacher, copied and trained, with a head. It sees a real and a generated
    clip of one caption, noised by the same noise at the same level, and is asked which is which (relativistic); and it
    must prefer a real clip under its own caption to the same clip under another clip's (contrastive), or captions would
    cease to matter. The teacher itself gives no gradient.

    Start from a consistency student (`distillation.start`). Of `distillation` it reads the student's own settings,
    `weight` (of the adversarial loss), warm start and averages.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the student.
        arc: the objective.
        optimization: optimizer of the student.
        seed: of all draws.
        teacher: the denoiser that warm start and validation ask; the bundle's by default.

    Raises:
        MusiccmError: a setting is out of range, or the bundle has no text to condition on.
    """

    rules: Arc
    kind = Arc
    group: ClassVar[str] = "arc"

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        arc: Arc | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(
            Adversarial(weight=0.0), bundle=bundle, distillation=distillation or Distillation(),
            optimization=optimization or Optimization(), seed=seed, teacher=teacher,
        )
        self.arc = self.rules
        config: Any = self.bundle.unet.config
        half = encoder_half(self.copied_unet())
        self.critic = Denoiser(half, self.schedule, self.bundle.prediction_type)
        self.head = self.make_head(config.block_out_channels[-1])
        self.finish_init()

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse to train on batches of one clip, which has no other's caption.

        Raises:
            MusiccmError: names the key.
        """
        super().check_experiment(experiment)
        size = ((experiment["data"] or {}).get("init_args") or {}).get("batch_size")
        if experiment["subcommand"] == "fit" and isinstance(size, int) and size < 2:
            raise MusiccmError("data.init_args.batch_size: expected at least 2, as ARC shuffles the captions of a "
                               f"batch, found {size}")

    def critics(self) -> Iterator[nn.Module]:
        """The discriminator: half a U-Net and its head."""
        yield from (self.critic, self.head)

    def logits(self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """How real noisy latents look under their conditions, `[B]`."""
        return self.head(self.critic.output(z, t_B, cond_BD))

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The relativistic loss: generated above real."""
        x = self.roll_out(z0, cond_BD, generator, trained=True)
        z, t_B, eps = self.noised(x, generator)
        fake = self.logits(z, t_B, cond_BD)
        with torch.no_grad():
            real = self.logits(self.schedule.add_noise(z0, eps, t_B), t_B, cond_BD)
        loss = ranking_loss(fake, real).mean()
        return self.distillation.weight * loss, {"loss_relativistic": loss.detach()}, None

    def critic_loss(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The relativistic loss, real above generated; the contrastive one; the penalties of both sides."""
        with torch.no_grad():
            x = self.roll_out(z0, cond_BD, generator, trained=False)
        z, t_B, eps = self.noised(x, generator)
        z_real = self.schedule.add_noise(z0, eps, t_B)
        fake, real = self.logits(z, t_B, cond_BD), self.logits(z_real, t_B, cond_BD)
        relativistic = ranking_loss(real, fake).mean()
        loss, parts = relativistic, {"loss_critic": relativistic.detach()}
        if self.arc.contrastive_weight > 0:
            contrastive = self._contrastive(real, z_real, t_B, cond_BD, batch.captions, generator)
            loss = loss + self.arc.contrastive_weight * contrastive
            parts["loss_head_contrastive"] = contrastive.detach()
        if self.arc.r1_weight > 0:
            both = ((real, z_real), (fake, z))
            r1 = sum(self.r1(logits, lambda z: self.logits(z, t_B, cond_BD), at, generator) for logits, at in both)
            loss = loss + self.arc.r1_weight * r1
            parts["r1"] = torch.as_tensor(r1).detach()
        return loss, parts

    def _contrastive(
        self, real: Tensor, z_real: Tensor, t_B: Tensor, cond_BD: AnyCondition, captions: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """A clip's own caption above another's; pairs of one and the same caption do not count.

        Raises:
            MusiccmError: there is no other clip to take a caption of.
        """
        count = len(real)
        if count < 2:
            raise MusiccmError("data.init_args.batch_size: expected at least 2 clips in each batch of a process, as "
                               f"ARC shuffles their captions, found {count}")
        shift = 1 + int(torch.randint(count - 1, (1,), generator=generator))
        other = [(i + shift) % count for i in range(count)]
        differ_B = sent(torch.tensor([captions[i] != captions[j] for i, j in enumerate(other)]), real.device)
        wrong = self.logits(z_real, t_B, cond_BD[sent(torch.tensor(other), real.device)])
        return (ranking_loss(real, wrong) * differ_B).sum() / differ_B.sum().clamp_min(1)
