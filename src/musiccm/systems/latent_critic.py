"""What objectives share that train a critic on the student's own samples: roll-outs, turns, and the critic's step."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import AnyCondition, sampling_timesteps
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import frozen
from musiccm.losses.matching import approximate_r1
from musiccm.models.acceleration.networks import channels_last
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Denoiser
from musiccm.models.latent_head import LatentHead
from musiccm.samplers import Sampler, make_sampler
from musiccm.samplers.steppers import STUDENT_SAMPLER
from musiccm.systems import speed
from musiccm.systems.adversary import AdversarialSystem
from musiccm.systems.clock import clock_stopped
from musiccm.systems.curve import learning_rate_factor
from musiccm.systems.distillation import normal_like
from musiccm.systems.parallel import average_gradients, mean_over_ranks, own_rows
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import setting_of
from musiccm.systems.student_weights import check_checkpoint, read_checkpoint

log = logging.getLogger(__name__)


@dataclass
class RollOut:
    """How the student's samples are made in training, and how the critic learns from them.

    Args:
        sampler: the sampler of the roll-out, by name and fields: the one that will sample the student.
        steps: numbers of sampling steps; each update draws one of them, and which of its calls is trained.
        noise_range: shares of the timesteps between which samples are noised for critic and teacher.
        critic_steps: updates of the critic for one of the student, each on a batch of its own.
        critic_warmup_steps: updates of the critic alone, before the student's first. The student starts good, and a
            critic that does not know it yet would push it away from there.
        critic_start: a checkpoint of an earlier run of the same objective, whose critic this one goes on with; null
            starts it anew. Its optimizer starts anew either way. A resumed run does not read it.
        critic_lr: learning rate of the critic, under the student's curve; its warm-up is counted in its own updates.
        critic_betas: AdamW's, of the critic.
        r1_weight: weight of the approximate R1 penalty on what tells real from generated; 0 for none.
        r1_noise: deviation of the noise by which R1 is approximated.
    """

    sampler: str | dict[str, Any] = "lcm"
    steps: Sequence[int] = (1, 2, 4)
    noise_range: Sequence[float] = (0.02, 0.98)
    critic_steps: int = 3
    critic_warmup_steps: int = 0
    critic_start: str | None = None
    critic_lr: float = 2e-4
    critic_betas: Sequence[float] = (0.0, 0.99)
    r1_weight: float = 0.0
    r1_noise: float = 0.1

    def check(self, grid: Tensor, where: str = "matching.") -> None:
        """Refuse what would stop the run later.

        Args:
            grid: the student's; of a bundle that is not read yet, any of as many points.
            where: what the keys stand under, for messages.

        Raises:
            MusiccmError: a number out of range, or a sampler that is none of a student's.
        """
        check_ranges(where, vars(self), count="critic_steps", index="critic_warmup_steps", betas="critic_betas",
                     positive="critic_lr r1_noise", not_negative="r1_weight")
        low, high = [*self.noise_range, -1.0, -1.0][:2]
        if len(self.noise_range) != 2 or not 0 <= low < high <= 1:
            raise MusiccmError(f"{where}noise_range: expected two ascending shares in [0, 1], found "
                               f"{list(self.noise_range)}.")
        if not self.steps:
            raise MusiccmError(f"{where}steps: expected at least one number of sampling steps, found none.")
        for steps in self.steps:
            try:
                sampling_timesteps(steps, grid)
            except MusiccmError as error:
                raise MusiccmError(f"{where}{error}") from None
        sampler = make_sampler(self.sampler)
        if not (sampler.students and sampler.memoryless):
            raise MusiccmError(f"{where}sampler: expected one that samples students by one call a step, such as lcm, "
                               f"found {sampler.name}.")


class CriticSystem(AdversarialSystem):
    """A distillation whose student and critic take turns, batch by batch.

    With n = `critic_steps`, every n + 1 steps are n of the critic and then one of the student; before the first,
    `critic_warmup_steps` are the critic's alone. Each step is on `optimization.accumulate` batches of its own.
    `trainer.global_step`, and with it `max_steps`, checkpoints and panels, counts the student's; `val_check_interval`
    counts batches, as Lightning has it. Whose turn it is follows from the number of batches seen, so that a resumed run
    goes on in the middle of a round.

    Samples are rolled out from pure noise by the sampler that ships, with gradients through the last call alone.

    A subclass names its settings by `kind` and `group` and finds them in `rules`; after `super().__init__` it adds its
    critic and calls `finish_init`. It implements `objective` (called within `critics_frozen`), `critics` and
    `critic_loss`. Heads are `make_head`'s.
    """

    #: The settings, their class, and the name of the subclass' argument that holds them.
    rules: RollOut
    kind: ClassVar[type[RollOut]] = RollOut
    group: ClassVar[str] = "matching"

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Take the objective's settings, and refuse them or a teacher that knows no captions, before weights are read.

        Raises:
            MusiccmError: a setting is out of range, or the teacher has no condition to be guided by.
        """
        super().check_settings(own)
        self.rules = own.get(self.group) or self.kind()
        self.rules.check(torch.arange(self.distillation.grid_points), f"{self.group}.")
        teacher = Bundle.from_pretrained(self.bundle_name)  # its configurations alone
        if not teacher.has("text_encoder"):
            raise MusiccmError(f"model.init_args.bundle: {self.bundle_name} has no text_encoder, and "
                               f"{type(self).__name__} needs a teacher that is conditioned on captions")
        teacher.check_condition()

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse a critic to start from that is not there; warn where the student is rolled out by another sampler than
        it is evaluated by.

        Raises:
            MusiccmError: names the key.
        """
        super().check_experiment(experiment)
        if experiment["subcommand"] != "fit":
            return
        key = f"model.init_args.{cls.group}"
        if experiment.get("ckpt_path") is None:
            check_checkpoint(f"{key}.critic_start", setting_of(experiment, cls.group, "critic_start"))
        rolled = make_sampler(setting_of(experiment, cls.group, "sampler") or cls.kind().sampler).spec
        for callback in (experiment.get("trainer") or {}).get("callbacks") or []:
            if str(callback.get("class_path", "")).endswith(".Evaluation"):
                asked = (callback.get("init_args") or {}).get("sampler") or STUDENT_SAMPLER
                if (shipped := make_sampler(asked).spec) != rolled:
                    log.warning("%s.sampler: the student is rolled out by %s and evaluated by %s; both by the one that "
                                "is to sample it is the usual choice", key, rolled, shipped)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Of the roll-out."""
        return make_sampler(self.rules.sampler)

    # what a subclass says

    def critics(self) -> Iterator[nn.Module]:
        """The networks that are trained beside the student, by one optimizer."""
        raise NotImplementedError

    def critic_loss(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss of one batch, and its parts by the names they are logged under; as `objective`."""
        raise NotImplementedError

    def critics_frozen(self) -> AbstractContextManager[None]:
        """In this context, which holds during the student's turn, no gradient is computed for the critic's weights.

        The backward pass lies in it too: activations that are computed again there must be those of the forward pass.
        """
        return frozen(nn.ModuleList(self.critics()))

    # samples

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
        numbers = self.rules.steps
        steps = numbers[int(torch.randint(len(numbers), (1,), generator=generator))]
        calls = 1 + int(torch.randint(steps, (1,), generator=generator))
        f, left = self.consistency("online"), iter(range(calls - 1, -1, -1))

        def call(z: Tensor, t_B: Tensor) -> Tensor:
            with torch.set_grad_enabled(trained and next(left) == 0):
                return f(z, t_B, cond_BD)

        timesteps = sampling_timesteps(steps, self.grid).tolist()[:calls]
        noise = normal_like(like, generator)
        return self.sampler.sample(call, self.schedule, noise, timesteps, lambda _: normal_like(like, generator))

    def noised(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Samples at random noise levels, these, and the noise."""
        steps = self.schedule.num_train_timesteps
        low, high = (min(round(share * steps), steps - 1) for share in self.rules.noise_range)
        t_B = sent(own_rows(lambda n: torch.randint(low, high + 1, (n,), generator=generator), len(x)), x.device)
        eps = normal_like(x, generator)
        return self.schedule.add_noise(x, eps, t_B), t_B, eps

    def make_head(self, width: int) -> LatentHead:
        """A head on feature maps of so many channels of the bundle's U-Net, alike on all processes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LatentHead(width, self.bundle.unet.config.norm_num_groups)

    def r1(self, logits: Tensor, score: Any, z: Tensor, generator: torch.Generator) -> Tensor:
        """The approximate R1 penalty, before its weight.

        Args:
            logits: of z.
            score: from noisy latents to logits.
            z: noisy latents.
            generator: of the perturbation.
        """
        noise = self.rules.r1_noise
        return approximate_r1(logits, score(z + noise * normal_like(z, generator)), noise)

    # turns

    def students_turn(self) -> bool:
        """Whether the next batch is the student's."""
        step = self._steps_done() - self.distillation.warm_start_steps
        alone, each = self.rules.critic_warmup_steps, self.rules.critic_steps + 1
        return step < 0 or (step >= alone and (step - alone) % each == each - 1)

    def _steps_done(self) -> int:
        """Of student and critic together."""
        return self.batches_seen // self.optimization.accumulate

    def _critic_updates(self) -> int:
        """Updates of the critic so far."""
        step = max(0, self._steps_done() - self.distillation.warm_start_steps)
        alone = self.rules.critic_warmup_steps
        return step - max(0, step - alone) // (self.rules.critic_steps + 1)

    def _steps_in(self, batches: int) -> int:
        """Steps of the student that so many batches hold."""
        steps, warm = batches // self.optimization.accumulate, self.distillation.warm_start_steps
        alone = warm + self.rules.critic_warmup_steps
        return min(warm, steps) + max(0, steps - alone) // (self.rules.critic_steps + 1)

    def training_step(self, batch: LatentBatch, batch_idx: int) -> dict[str, Any]:
        """One batch, of the student or of the critic; see `DistilledSystem.training_step`."""
        if self.students_turn():
            with self.critics_frozen():
                return super().training_step(batch, batch_idx)
        started = time.perf_counter()
        updates = self._critic_updates()
        generator = keyed_generator(self.seed, "distil", 0, self.batches_seen)
        self.batches_seen += 1
        last = self.batches_seen % self.optimization.accumulate == 0
        z0 = self.codec.normalise(batch.latents_BCTF)
        loss, parts = self.critic_loss(batch, z0, self._condition(batch, generator), generator)
        # Not `manual_backward`, which would have DDP wait for gradients of the student.
        self._backward(loss, Tensor.backward)
        parameters = self._critic_parameters()
        average_gradients(parameters)
        if last:
            parts["grad_norm_critic"] = self._critic_step(parameters, updates)
        watched = mean_over_ranks(parts)
        rate = len(batch) * self.trainer.world_size / (time.perf_counter() - started)
        self.step_log.write(self, watched, {"samples_per_s": rate})
        return {"loss": loss.detach(), "watched": watched}

    def _critic_step(self, parameters: list[nn.Parameter], updates: int) -> Tensor:
        optimizer, o = self._optimizers()[-1], self.optimization
        norm = nn.utils.clip_grad_norm_(parameters, o.clip_norm)
        factor = learning_rate_factor(updates, o.warmup_steps, self._progress(), o.decay_share, o.final_lr_share,
                                      o.decay)
        for group in optimizer.param_groups:
            group["lr"] = self.rules.critic_lr * factor
        with clock_stopped(optimizer):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _critic_parameters(self) -> list[nn.Parameter]:
        return [p for network in self.critics() for p in network.parameters() if p.requires_grad]

    def identity(self) -> dict[str, Any]:
        """As without a critic; what only a new run reads is left out."""
        return {key: value for key, value in super().identity().items() if key != f"{self.group}.critic_start"}

    def rate_key(self, metric: str) -> str:
        """The setting that has the learning rate of what a logged value speaks of."""
        critics = ("loss_critic", "loss_head", "grad_norm_critic", "r1")
        key = f"{self.group}.critic_lr" if metric.startswith(critics) else "optimization.lr"
        return f"model.init_args.{key}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As without a critic, but not to go on with a run of version 0.2, whose batches were whole rounds.

        Raises:
            MusiccmError: the checkpoint is of such a run.
        """
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if fitting and f"{self.group}.critic_warmup_steps" not in (checkpoint.get("student") or {}):
            raise MusiccmError(f"{self.trainer.ckpt_path}: its run is of a version whose batches each trained student "
                               "and critic, and cannot go on as turns; start a new one from its student by "
                               "model.init_args.distillation.start")
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student, for the heads on frozen features where there are any, and for the critic."""
        lr, (first, second) = self.rules.critic_lr, self.rules.critic_betas
        critic = torch.optim.AdamW(self._critic_parameters(), lr, (first, second), weight_decay=0.0, fused=True)
        return [*super().configure_optimizers(), critic]

    def compiled_parts(self) -> list[nn.Module]:
        """As without a critic; the critic's U-Net and heads."""
        networks: list[Any] = [network for network in self.critics() if hasattr(network, "unet")]
        heads = [module for critic in self.critics() for module in critic.modules() if isinstance(module, LatentHead)]
        return [*super().compiled_parts(), *[network.unet for network in networks], *heads]

    def setup(self, stage: str) -> None:
        """Give a new run the critic that it goes on with, and lay that out too."""
        super().setup(stage)
        if stage == "fit" and self.rules.critic_start is not None and self.trainer.ckpt_path is None:
            self._start_critics(Path(self.rules.critic_start))
        own = [network for network in self.critics() if isinstance(network, Denoiser)]
        if stage == "fit" and self.optimization.gradient_checkpointing:
            speed.recompute_activations([network.unet for network in own])
        if stage == "fit" and self.optimization.channels_last:
            channels_last(own)

    def _start_critics(self, path: Path) -> None:
        """Take the critic's weights, all of them, from an earlier run's checkpoint."""
        own = {id(network) for network in self.critics()}
        names = [name for name, module in self.named_children() if id(module) in own]
        prefixes = tuple(f"{name}." for name in names)
        found = {name: value for name, value in read_checkpoint(path)["state_dict"].items()
                 if name.startswith(prefixes)}
        wanted = {name: value for name, value in self.state_dict().items()
                  if name.startswith(prefixes) and self._in_checkpoint(name)}
        wrong = sorted(name for name in wanted.keys() | found.keys()
                       if name not in wanted or name not in found or wanted[name].shape != found[name].shape)
        if wrong:
            raise MusiccmError(f"{self.group}.critic_start: {path}: expected the critic of a {type(self).__name__} on "
                               f"{self.bundle_name}; {len(wrong)} of its weights are missing, too many or of another "
                               f"shape, such as {wrong[0]}. Name a checkpoint of the same objective and settings")
        self.load_state_dict(found, strict=False)

    def configure_model(self) -> None:
        """Refuse to be sharded.

        Raises:
            MusiccmError: the strategy shards networks over processes.
        """
        if self.device_mesh is not None:
            raise MusiccmError(f"trainer.strategy: {type(self).__name__} has a critic that Sharded does not shard; use "
                               "DDP, with a LoRA student (distillation.lora) where memory is short")

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the guided teacher would move the averaged student's one-step samples; fixed noise."""
        # Keyed by clip, so that the number depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        shape, device = self.codec.normalise(batch.latents_BCTF).shape[1:], batch.latents_BCTF.device
        noise, eps = torch.stack([torch.randn((2, *shape), generator=g) for g in generators], 1).to(device)
        t_B = torch.cat([torch.randint(len(self.grid), (1,), generator=g) for g in generators])
        cond_BD = self.default_condition(batch)
        x = self.consistency("slow")(noise, self.grid[-1:].to(device).expand(len(noise)), cond_BD)
        t_B = self.grid[t_B].to(device)
        real = self.guided_teacher(cond_BD)(self.schedule.add_noise(x, eps, t_B), t_B)
        self.log("val/teacher_residual", (x - real).abs().mean(), batch_size=len(batch), sync_dist=True)
