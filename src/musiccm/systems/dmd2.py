"""Distribution matching distillation: DMD (arXiv 2311.18828) with the improvements of DMD2 (arXiv 2405.14867)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition, to_x0, training_target
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import NON_SATURATING
from musiccm.losses.matching import matching_loss
from musiccm.models.denoiser import Denoiser
from musiccm.models.encoder_half import encoder_half, features
from musiccm.models.latent_head import LatentHead
from musiccm.models.lora import Lora, is_adapter, with_adapter
from musiccm.systems.distillation import normal_like
from musiccm.systems.latent_critic import CriticSystem, RollOut
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Adversarial, Distillation, Optimization


@dataclass
class Matching(RollOut):
    """The objective's own settings; see `RollOut` for those it shares with others.

    Args:
        gan_weight: weight of the GAN's loss for the student; 0 builds no head.
        gan_critic_weight: weight of the head's loss in the critic's.
        critic_lora: train the critic as a low-rank adapter on the teacher's frozen weights, `{rank, alpha,
            target_modules}`, which spares its weights, gradients and moments; null trains all of it.
    """

    gan_weight: float = 0.02
    gan_critic_weight: float = 0.01
    critic_lora: Lora | None = None

    def check(self, grid: Tensor, where: str = "matching.") -> None:
        """Refuse what would stop the run later; see `RollOut.check`."""
        super().check(grid, where)
        check_ranges(where, vars(self), not_negative="gan_weight gan_critic_weight")
        if self.critic_lora is not None:
            check_ranges(f"{where}critic_lora.", vars(self.critic_lora), count="rank", positive="alpha")


class DMD2(CriticSystem):
    """Trains a student whose samples have the distribution that its guided teacher has, not the teacher's trajectories.

    A critic, which starts as the teacher, learns the score of the student's own samples; where it differs from the
    teacher's, the samples are pushed. A head on the critic's middle block tells samples from training latents, both
    noised. The discriminator on frozen features of `AdversarialSystem` can join by `adversarial.weight`.

    Start from a consistency student (`distillation.start`) or from the teacher after `warm_start_steps`. Of
    `distillation` it does not read solver, curriculum, distance, timesteps and the target average.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the student; `weight` is that of the matching loss.
        matching: the objective.
        adversarial: a discriminator beside it; none by default.
        optimization: optimizer of the student.
        seed: of all draws.
        teacher: the denoiser that teaches; the bundle's by default.

    Raises:
        MusiccmError: a setting is out of range, or the bundle has no text to condition on.
    """

    rules: Matching
    kind = Matching

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        matching: Matching | None = None,
        adversarial: Adversarial | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(
            adversarial or Adversarial(weight=0.0), bundle=bundle, distillation=distillation or Distillation(),
            optimization=optimization or Optimization(), seed=seed, teacher=teacher,
        )
        own = self.matching = self.rules
        if own.critic_lora is None:
            unet = self.copied_unet()
        else:
            unet = with_adapter(self.bundle.network, own.critic_lora, seed, "matching.critic_lora")
        self.critic = self.bundle.kind.denoiser(unet, self.schedule, self.bundle.prediction_type)
        self.head: LatentHead | None = None
        #: The critic's own layers once more, without those above the head; a list, as they are to be named once.
        self._lower: list[Denoiser] = []
        if own.gan_weight > 0:
            self.bundle.require_unet("matching.gan_weight", "set it to 0")
            config: Any = self.bundle.unet.config
            self.head = self.make_head(config.block_out_channels[-1])
            half = encoder_half(self.critic.unet)
            self._lower = [Denoiser(half, self.schedule, self.critic.prediction_type)]
        self.finish_init()

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse a critic that could not be told the scale of the samples that it learns.

        Raises:
            MusiccmError: as `CriticSystem`; or the critic is an adapter, and the student's guidance variable.
        """
        super().check_settings(own)
        if self.rules.critic_lora is not None and self.distillation.guidance == "variable":
            raise MusiccmError("matching.critic_lora: expected none beside distillation.guidance: variable: the critic "
                               "must be told the scale of its samples by a guidance branch, which is trained whole.")

    def critics(self) -> Iterator[nn.Module]:
        """The score network, and the head where there is one."""
        yield self.critic
        if self.head is not None:
            yield self.head

    def critic_output(self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> tuple[Tensor, Tensor | None]:
        """The critic's prediction, and the head's logits where there is one."""
        if self.head is None:
            return self.critic.output(z, t_B, cond_BD), None
        output, (middle,) = features(self.critic, z, t_B, cond_BD, middle_only=True)
        return output, self.head(middle)

    def logits(self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """The head's logits alone, for which the critic's up blocks are not computed."""
        assert self.head is not None
        return self.head(self._lower[0].output(z, t_B, cond_BD))

    def compiled_parts(self) -> list[nn.Module]:
        """As with any critic, and the lower half that its head looks at."""
        return [*super().compiled_parts(), *[half.unet for half in self._lower]]

    def gradient_weight(self, logits: Tensor | None, t_B: Tensor) -> Tensor | None:
        """What each sample's gradient is multiplied by; None for 1, which is the reverse KL divergence's.

        Args:
            logits: the head's, of the noised samples.
            t_B: their noise levels.
        """
        return None

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The matching loss, the GAN's, and `L_G` where there is a discriminator on frozen features."""
        x = self.roll_out(z0, cond_BD, generator, trained=True)
        z, t_B, _ = self.noised(x, generator)
        with torch.no_grad():
            real = self.guided_teacher(cond_BD)(z, t_B)
        output, logits = self.critic_output(z if self.head is not None else z.detach(), t_B, cond_BD)
        alpha_B, sigma_B = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        fake = to_x0(self.critic.prediction_type, output, z, alpha_B, sigma_B).detach()
        loss, gradient = matching_loss(x, real, fake, self.gradient_weight(logits, t_B))
        parts = {"loss_matching": loss.detach(), "matching_gradient": gradient.abs().mean()}
        loss = self.distillation.weight * loss
        if logits is not None:
            loss_gan = NON_SATURATING.generator(logits).mean()
            loss = loss + self.matching.gan_weight * loss_gan
            parts["loss_gan"] = loss_gan.detach()
        term = self.adversarial_term(z0, x, batch.text_BD, generator)
        if term is not None:
            loss = loss + self.adversarial.weight * term["loss_g"]
            parts["loss_g"] = term["loss_g"].detach()
        return loss, parts, term

    def critic_loss(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising loss on the student's samples, and the head's logistic one."""
        settings = self.matching
        with torch.no_grad():
            x = self.roll_out(z0, cond_BD, generator, trained=False)
        z, t_B, eps = self.noised(x, generator)
        output, fake = self.critic_output(z, t_B, cond_BD)
        alpha_B, sigma_B = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        target = training_target(self.critic.prediction_type, x, eps, alpha_B, sigma_B)
        loss = (output - target).square().mean()
        parts = {"loss_critic": loss.detach()}
        if fake is not None:
            z_real = self.schedule.add_noise(z0, normal_like(z0, generator), t_B)
            real = self.logits(z_real, t_B, cond_BD)
            loss_head = NON_SATURATING.fake(fake).mean() + NON_SATURATING.real(real).mean()
            parts["loss_head"] = loss_head.detach()
            if settings.r1_weight > 0:
                r1 = self.r1(real, lambda z: self.logits(z, t_B, cond_BD), z_real, generator)
                loss_head = loss_head + settings.r1_weight * r1
                parts["r1"] = r1.detach()
            loss = loss + settings.gan_critic_weight * loss_head
        return loss, parts

    def _in_checkpoint(self, name: str) -> bool:
        """As without a critic; of one that is an adapter, the adapter alone."""
        under = self.matching.critic_lora is not None and name.startswith("critic.") and not is_adapter(name)
        return super()._in_checkpoint(name) and not under
