"""Distribution matching distillation: DMD (arXiv 2311.18828) with the improvements of DMD2 (arXiv 2405.14867)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition, sampling_timesteps, to_x0, training_target
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import NON_SATURATING, frozen
from musiccm.models.acceleration.networks import channels_last
from musiccm.models.denoiser import Denoiser
from musiccm.samplers import make_sampler
from musiccm.systems import speed
from musiccm.systems.adversary import AdversarialSystem
from musiccm.systems.clock import clock_stopped
from musiccm.systems.distillation import normal_like
from musiccm.systems.parallel import average_gradients, own_rows
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Adversarial, Distillation, Optimization


@dataclass
class Matching:
    """The objective's own settings.

    Args:
        sampler: the sampler of the roll-out, by name and fields: the one that will sample the student.
        steps: numbers of sampling steps; each update draws one of them, and which of its calls is trained.
        noise_range: shares of the timesteps between which samples are noised for the two scores and the GAN.
        critic_steps: updates of the critic for one of the student.
        critic_lr: learning rate of the critic and its head, under the student's curve.
        critic_betas: AdamW's, of both.
        gan_weight: weight of the GAN's loss for the student; 0 builds no head.
        gan_critic_weight: weight of the head's loss in the critic's.
    """

    sampler: str | dict[str, Any] = "lcm"
    steps: Sequence[int] = (1, 2, 4)
    noise_range: Sequence[float] = (0.02, 0.98)
    critic_steps: int = 3
    critic_lr: float = 2e-4
    critic_betas: Sequence[float] = (0.0, 0.99)
    gan_weight: float = 0.02
    gan_critic_weight: float = 0.01

    def check(self, grid: Tensor) -> None:
        """Refuse what would stop the run later.

        Raises:
            MusiccmError: a number out of range, or a sampler that is none of a student's.
        """
        check_ranges("matching.", vars(self), count="critic_steps", positive="critic_lr", betas="critic_betas",
                     not_negative="gan_weight gan_critic_weight")
        low, high = [*self.noise_range, -1.0, -1.0][:2]
        if len(self.noise_range) != 2 or not 0 <= low < high <= 1:
            raise MusiccmError("matching.noise_range: expected two ascending shares in [0, 1], found "
                               f"{list(self.noise_range)}.")
        if not self.steps:
            raise MusiccmError("matching.steps: expected at least one number of sampling steps, found none.")
        for steps in self.steps:
            sampling_timesteps(steps, grid)
        sampler = make_sampler(self.sampler)
        if not (sampler.students and sampler.memoryless):
            raise MusiccmError(f"matching.sampler: expected one that samples students by one call a step, such as lcm, "
                               f"found {sampler.name}.")


def matching_loss(x: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """A loss whose gradient is that of distribution matching, `(x0_fake - x0_real) / mean|x - x0_real|` an element.

    The scores of the noised distributions are `(alpha x0 - z) / sigma^2`, so that the gradient of KL(fake | real) with
    respect to x points along `x0_fake - x0_real`; the mean is over an item's elements (DMD, equations 7 and 8).

    Args:
        x: the student's samples `[B, ...]`, attached to its graph.
        real: the (guided) teacher's clean estimate of x noised; a constant.
        fake: the critic's; a constant.

    Returns:
        `0.5 mean (x - stopgrad(x - gradient))^2`, and the gradient `[B, ...]`.
    """
    with torch.no_grad():
        size = (x - real).abs().flatten(1).mean(1).clamp_min(1e-6)
        gradient = (fake - real) / size.reshape(-1, *[1] * (x.ndim - 1))
        target = x - gradient
    return 0.5 * (x - target).square().mean(), gradient


class _Head(nn.Sequential):
    """Real or generated, from the middle of the critic: `[B, C, H, W] -> [B]` logits."""

    def __init__(self, width: int, groups: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(groups, width), nn.SiLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, middle: Tensor) -> Tensor:
        with torch.autocast(middle.device.type, enabled=False):
            return super().forward(middle.float())


class DMD2(AdversarialSystem):
    """Trains a student whose samples have the distribution that its guided teacher has, not the teacher's trajectories.

    Samples are rolled out from pure noise by the sampler that ships, with gradients through the last call alone. A
    critic, which starts as the teacher, learns the score of the student's own samples; where it differs from the
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
        MusiccmError: a setting is out of range, or gradients are to be accumulated.
    """

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
        self.matching = matching or Matching()
        self.matching.check(self.grid)
        if self.optimization.accumulate != 1:
            raise MusiccmError("optimization.accumulate: expected 1, as critic and student take turns within a batch, "
                               f"found {self.optimization.accumulate}; use a larger batch, or more devices")
        self.sampler = make_sampler(self.matching.sampler)
        unet = copy.deepcopy(self.bundle.unet).requires_grad_(True)
        self.critic = Denoiser(unet, self.schedule, self.bundle.prediction_type)
        self.head: nn.Module | None = None
        if self.matching.gan_weight > 0:
            with torch.random.fork_rng(devices=[]):  # alike on all processes
                torch.manual_seed(seed)
                self.head = _Head(unet.config.block_out_channels[-1], unet.config.norm_num_groups)
        self.finish_init()

    def roll_out(self, like: Tensor, cond_BD: AnyCondition, generator: torch.Generator, trained: bool) -> Tensor:
        """Samples of the student after one of the calls of one of the numbers of steps, both drawn.

        Args:
            like: latents of the batch, for their shape.
            cond_BD: conditions.
            generator: of the draws, which are those of the global batch.
            trained: whether gradients flow through the last call.

        Returns:
            Clean latents.
        """
        numbers = self.matching.steps
        steps = numbers[int(torch.randint(len(numbers), (1,), generator=generator))]
        calls = 1 + int(torch.randint(steps, (1,), generator=generator))
        f, left = self.consistency("online"), iter(range(calls - 1, -1, -1))

        def call(z: Tensor, t_B: Tensor) -> Tensor:
            with torch.set_grad_enabled(trained and next(left) == 0):
                return f(z, t_B, cond_BD)

        timesteps = sampling_timesteps(steps, self.grid).tolist()[:calls]
        noise = normal_like(like, generator)
        return self.sampler.sample(call, self.schedule, noise, timesteps, lambda _: normal_like(like, generator))

    def _noised(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Samples at random noise levels, these, and the noise."""
        steps = self.schedule.num_train_timesteps
        low, high = (min(round(share * steps), steps - 1) for share in self.matching.noise_range)
        t_B = own_rows(lambda n: torch.randint(low, high + 1, (n,), generator=generator), len(x)).to(x.device)
        eps = normal_like(x, generator)
        return self.schedule.add_noise(x, eps, t_B), t_B, eps

    def _critic_output(self, z: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> tuple[Tensor, Tensor | None]:
        """The critic's prediction, and the head's logits where there is one."""
        if self.head is None:
            return self.critic.output(z, t_B, cond_BD), None
        middle: list[Tensor] = []
        block: Any = self.critic.unet.mid_block
        handle = block.register_forward_hook(lambda *called: middle.append(called[-1]))
        try:
            output = self.critic.output(z, t_B, cond_BD)
        finally:
            handle.remove()
        return output, self.head(middle[0])

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The matching loss, the GAN's, and `L_G` where there is a discriminator on frozen features."""
        x = self.roll_out(z0, cond_BD, generator, trained=True)
        z, t_B, _ = self._noised(x, generator)
        with torch.no_grad():
            real = self.guided_teacher(cond_BD)(z, t_B)
        own = list(self._critics())
        with frozen(nn.ModuleList(own)):
            output, logits = self._critic_output(z if self.head is not None else z.detach(), t_B, cond_BD)
        alpha_B, sigma_B = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        fake = to_x0(self.critic.prediction_type, output, z, alpha_B, sigma_B).detach()
        loss, gradient = matching_loss(x, real, fake)
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
        return loss, parts, {"term": term, "z0": z0, "cond": cond_BD, "generator": generator}

    def _critics(self) -> Iterator[nn.Module]:
        yield self.critic
        if self.head is not None:
            yield self.head

    def other_steps(self, carried: dict[str, Any], last: bool) -> dict[str, Tensor]:
        """The critic's updates, each on fresh samples, and the step of the heads on frozen features."""
        parts: dict[str, Tensor] = {}
        for _ in range(self.matching.critic_steps):
            parts = self._critic_step(carried["z0"], carried["cond"], carried["generator"])
        if carried["term"] is not None:
            parts |= super().other_steps(carried["term"], last)
        return parts

    def _critic_step(self, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> dict[str, Tensor]:
        optimizer, settings = self._optimizers()[-1], self.matching
        with torch.no_grad():
            x = self.roll_out(z0, cond_BD, generator, trained=False)
        z, t_B, eps = self._noised(x, generator)
        output, fake = self._critic_output(z, t_B, cond_BD)
        alpha_B, sigma_B = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        target = training_target(self.critic.prediction_type, x, eps, alpha_B, sigma_B)
        loss = (output - target).square().mean()
        parts = {"loss_critic": loss.detach()}
        if fake is not None:
            z_real = self.schedule.add_noise(z0, normal_like(z0, generator), t_B)
            _, real = self._critic_output(z_real, t_B, cond_BD)
            assert real is not None  # as the other
            loss_head = NON_SATURATING.fake(fake).mean() + NON_SATURATING.real(real).mean()
            loss = loss + settings.gan_critic_weight * loss_head
            parts["loss_head"] = loss_head.detach()
        self._backward(loss, Tensor.backward)
        parameters = [parameter for network in self._critics() for parameter in network.parameters()]
        average_gradients(parameters)
        parts["grad_norm_critic"] = nn.utils.clip_grad_norm_(parameters, self.optimization.clip_norm).detach()
        for group in optimizer.param_groups:
            group["lr"] = settings.critic_lr * self._lr_factor()
        with clock_stopped(optimizer):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return parts

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student, for the heads on frozen features where there are any, and for the critic."""
        m = self.matching
        parameters = [parameter for network in self._critics() for parameter in network.parameters()]
        critic = torch.optim.AdamW(parameters, m.critic_lr, (m.critic_betas[0], m.critic_betas[1]), weight_decay=0.0,
                                   fused=True)
        return [*super().configure_optimizers(), critic]

    def setup(self, stage: str) -> None:
        """Lay out the critic too."""
        super().setup(stage)
        if stage == "fit" and self.optimization.gradient_checkpointing:
            speed.recompute_activations([self.critic.unet])
        if stage == "fit" and self.optimization.channels_last:
            channels_last([self.critic])

    def configure_model(self) -> None:
        """Refuse to be sharded.

        Raises:
            MusiccmError: the strategy shards networks over processes.
        """
        if self.device_mesh is not None:
            raise MusiccmError("trainer.strategy: DMD2 has a critic that Sharded does not shard; use DDP, with a LoRA "
                               "student (distillation.lora) where memory is short")

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the guided teacher would move the averaged student's one-step samples; fixed noise."""
        # Keyed by clip, so that the number depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        shape, device = self.codec.normalise(batch.latents_BCTF).shape[1:], batch.latents_BCTF.device
        noise, eps = torch.stack([torch.randn((2, *shape), generator=g) for g in generators], 1).to(device)
        t_B = torch.cat([torch.randint(len(self.grid), (1,), generator=g) for g in generators])
        x = self.consistency("slow")(noise, self.grid[-1:].to(device).expand(len(noise)), batch.text_BD)
        t_B = self.grid[t_B].to(device)
        real = self.guided_teacher(batch.text_BD)(self.schedule.add_noise(x, eps, t_B), t_B)
        self.log("val/teacher_residual", (x - real).abs().mean(), batch_size=len(batch), sync_dist=True)
