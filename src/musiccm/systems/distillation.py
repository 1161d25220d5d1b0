"""What every distillation shares: the student, its averages and optimizer, the warm start and the step."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import Batch, LatentBatch
from musiccm.device import sent
from musiccm.diffusion import (
    AnyCondition,
    BoundDenoise,
    StudentGuidance,
    check_prediction_type,
    noise_process,
    scale_of,
    student_grid,
    told_scale,
    with_guidance,
    without_scale,
)
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import is_student
from musiccm.models.denoiser import Consistency, Denoiser, takes_scale
from musiccm.models.ema import Ema
from musiccm.models.lora import with_adapter
from musiccm.samplers import HeldFrames
from musiccm.systems.checkpoint_fit import SHARED, arguments, plain
from musiccm.systems.conditions import check_audio_share, window_condition
from musiccm.systems.curve import learning_rate_factor
from musiccm.systems.parallel import mean_over_ranks, own_rows
from musiccm.systems.parallel import normal_like as normal_like  # where objectives have always imported it from
from musiccm.systems.resuming import Resuming
from musiccm.systems.settings import Distillation, Optimization, setting_of
from musiccm.systems.step_log import StepLog
from musiccm.systems.step_networks import StepNetworks
from musiccm.systems.student_weights import check_checkpoint
from musiccm.systems.warm_start import warm_start_loss


class DistilledSystem(Resuming, StepNetworks):
    """Trains a few-step student of a bundle's teacher under manual optimization; a subclass says by which objective.

    A subclass adds its own modules after `super().__init__` and then calls `finish_init`; it implements `objective`
    (docs/extend.md). It may refuse settings early by `check_settings` and `check_experiment`. If it trains more than
    the student, it overrides `other_steps`, `configure_optimizers`, `half_parts` and `identity` too, as
    `systems.adversary` does.

    Only the student's steps advance `trainer.global_step`. All randomness is keyed by (seed, batch) and drawn for the
    global batch, so a resumed run draws what the uninterrupted one would have drawn, and so does one on other devices.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: what the student is and how it learns.
        optimization: optimizer of the student.
        seed: seed of timesteps and noise.
        teacher: the denoiser that teaches, `(z, t, cond) -> x0` under the bundle's noise process; the bundle's by
            default. The student starts from the bundle's weights all the same.

    Raises:
        MusiccmError: a setting is out of range or asks for audio conditions that the bundle has not, its U-Net does not
            take what its text encoder gives, or it is a student itself.
    """

    student: nn.Module
    #: Whether the objective trains on items of which some frames are held clean.
    holds_frames = False

    def __init__(
        self, bundle: str, distillation: Distillation, optimization: Optimization, seed: int,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # as given: what becomes of a module in training is no setting
        own = {name: value for name, value in arguments(inspect.currentframe(), DistilledSystem).items()
               if name not in SHARED}
        self._own_arguments = {name: value if value is None or is_dataclass(value) else plain(value, weights=False)
                               for name, value in own.items()}
        self.automatic_optimization = False
        self.bundle_name, self.seed = bundle, seed
        self.distillation, self.optimization = distillation, optimization
        self.distillation.check()
        self.optimization.check()
        self.check_settings(own)
        self.bundle = Bundle.from_pretrained(bundle)
        if is_student(self.bundle.scheduler_config):
            raise MusiccmError(
                f"model.init_args.bundle: {bundle} is a distilled student, which must not be guided and so cannot "
                "teach; name a teacher's bundle"
            )
        if self.distillation.guidance != "variable" and takes_scale(
            self.bundle.config(self.bundle.kind.network)
        ):
            raise MusiccmError(f"distillation.guidance: expected variable, as the U-Net of {bundle} has a guidance "
                               f"branch and must be told a scale, found {self.distillation.guidance!r}")
        self.schedule = noise_process(self.bundle.scheduler_config)
        check_prediction_type(self.distillation.prediction_type, self.schedule)
        self.grid = student_grid(self.schedule.num_train_timesteps, self.distillation.grid_points,
                                 self.distillation.grid, "distillation.grid_points")
        self.batches_seen = 0
        self._unfinished: dict[str, Tensor] = {}
        self._half: dict[str, nn.Module] = {}
        self.step_log = StepLog()

        if self.bundle.gives_tokens:
            self.bundle.check_condition()
        conditioner = self.bundle.network_conditioner()
        check_audio_share("model.init_args.distillation.audio_condition_share",
                          self.distillation.audio_condition_share, conditioner)
        taught = self.bundle.kind.denoiser(self.bundle.network, self.schedule, self.bundle.prediction_type)
        self._check_held(taught)
        self.given_teacher = teacher is not None
        self.frozen = nn.ModuleDict(
            {"teacher": taught if teacher is None else teacher, "codec": self.bundle.codec("original"),
             "conditioner": conditioner}
        )
        if self.distillation.lora is None:
            self.student, shared = self.copied_unet(), []
        else:  # the teacher's own weights, held once by teacher, student and both averages
            self.student = with_adapter(self.bundle.network, self.distillation.lora, seed, "distillation.lora")
            shared = [*self.bundle.network.parameters(), *self.bundle.network.buffers()]
        if isinstance(self.distillation.distance, nn.Module):
            self.frozen["distance"] = self.distillation.distance
        self.student_ema_target = Ema(self.student, self.distillation.target_ema_decay, shared)
        self.student_ema_slow = Ema(self.student, self.distillation.eval_ema_decay, shared)

    def finish_init(self) -> None:
        """Freeze what is not trained, once all modules are there."""
        self.frozen.requires_grad_(False).eval()
        # DDP's private switch, set before it wraps the system: it looks after the student alone. One backward pass
        # reaches all of that, so that nothing unused need be searched for, and the heads' pass does not send the
        # student's buckets round a second time. Frozen parts and averages are alike on all processes as they are.
        every = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in every if not (name.startswith("student.") and self._in_checkpoint(name))
        ]

    # what a subclass says

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse an experiment that lacks what the objective needs outside of its own settings, before anything loads.

        Commands call it before they build anything.

        Args:
            experiment: the sections of its file: `model`, `data`, `trainer` (with its `callbacks`), and `subcommand`
                with what is about to run: `fit`, `validate` or `test`; `ckpt_path` where a run goes on.

        Raises:
            MusiccmError: names what is missing, and the key or command that brings it.
        """
        if experiment.get("ckpt_path") is None:  # a run that goes on does not read it
            check_checkpoint("model.init_args.distillation.start", setting_of(experiment, "distillation", "start"))

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse settings of a subclass' own, before the bundle is read; those that all objectives share were checked.

        Args:
            own: the arguments of its constructors beside the shared ones, by name; None where one was not given.

        Raises:
            MusiccmError: names the key.
        """

    def _check_held(self, teacher: nn.Module) -> None:
        if not self.distillation.continuation_share + self.distillation.inpainting_share:
            return
        if not self.holds_frames:
            raise MusiccmError(f"distillation.continuation_share, inpainting_share: expected 0 for "
                               f"{type(self).__name__}, which trains on whole clips; consistency (LCM, MusicCM, PCM) "
                               "holds frames")
        if "held_BT" not in inspect.signature(teacher.forward).parameters:
            raise MusiccmError(f"distillation.continuation_share, inpainting_share: expected 0, as the network of "
                               f"{self.bundle_name} takes no held frames; MeLoDy's renderer does")

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The student's loss of one batch, after the warm start.

        Args:
            batch: the batch.
            z0: its clean latents, normalised.
            cond_BD: its conditions.
            generator: source of all draws.

        Returns:
            The loss; its parts, by the name they are logged under; what `other_steps` needs, or None.
        """
        raise NotImplementedError

    def other_steps(self, carried: Any, last: bool) -> dict[str, Tensor]:
        """Losses and steps of what is trained beside the student.

        Args:
            carried: the third value of `objective`.
            last: whether this batch completes an optimizer step.

        Returns:
            Parts to log.
        """
        return {}

    # what callbacks and commands read

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher, a denoiser."""
        return self.frozen["teacher"]

    @property
    def codec(self) -> nn.Module:
        """The frozen `LatentCodec`."""
        return self.frozen["codec"]

    @property
    def conditioner(self) -> nn.Module:
        """The frozen `Conditioner`: CLAP, or a text encoder that gives tokens."""
        return self.frozen["conditioner"]

    @property
    def guidance_scale(self) -> float:
        """The scale by which the student is sampled and the teacher beside it, unless another is asked for."""
        return self.distillation.guidance_scale

    @property
    def student_guidance(self) -> StudentGuidance:
        """How the student is guided when it is sampled."""
        return self.distillation.student_guidance

    def denoiser(self, which: str = "slow") -> Denoiser:
        """The student as a denoiser: its `slow` (evaluated) or `target` average, or the `online` weights."""
        networks = {"slow": self.student_ema_slow.module, "target": self.student_ema_target.module}
        network = self.student if which == "online" else networks[which]
        return self.bundle.kind.denoiser(network, self.schedule, self.distillation.prediction_type)

    def consistency(self, which: str = "slow") -> Consistency:
        """The consistency function of the same weights."""
        return Consistency(
            self.denoiser(which), self.distillation.sigma_data, self.distillation.timestep_scaling
        )

    def train(self, mode: bool = True) -> DistilledSystem:
        """Switch the student and the heads; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    # the condition, the teacher and the warm start

    def _condition(self, batch: LatentBatch, generator: torch.Generator) -> AnyCondition:
        share = self.distillation.audio_condition_share
        drawn_B = own_rows(lambda n: torch.rand(n, 1, generator=generator), len(batch))[:, 0]
        audio_B = sent(drawn_B < share, batch.latents_BCTF.device)
        cond_BD = window_condition(batch, audio_B, self.conditioner)
        if self.distillation.guidance != "variable":
            return cond_BD
        low, high = self.distillation.guidance_range
        share_B = own_rows(lambda n: torch.rand(n, generator=generator), len(batch))
        return told_scale(cond_BD, sent(low + (high - low) * share_B, batch.latents_BCTF.device))

    def default_condition(self, batch: LatentBatch) -> AnyCondition:
        """Conditions as the student takes them, of one that is told a scale with its default: for validation."""
        cond_BD = window_condition(batch, torch.zeros(len(batch), dtype=torch.bool), self.conditioner)
        return told_scale(cond_BD, self.guidance_scale) if self.distillation.guidance == "variable" else cond_BD

    def copied_unet(self) -> nn.Module:
        """A copy of the teacher's network to be trained, which takes the conditions of this run.

        Where the student is told a guidance scale it has a branch for it, of no effect yet.
        """
        unet = self.bundle.network
        if self.distillation.guidance == "variable" and not takes_scale(unet.config):
            self.bundle.require_unet("distillation.guidance: variable", "expected fixed or direct")
            from musiccm.models.guidance_branch import with_guidance_branch  # settings are read without diffusers

            return with_guidance_branch(unet, self.seed, "model.init_args.bundle").requires_grad_(True)
        return copy.deepcopy(unet).requires_grad_(True)

    def guided_teacher(self, cond_BD: AnyCondition, held: HeldFrames | None = None) -> BoundDenoise:
        """The teacher under a condition, guided as the student is taught: `(z, t) -> x0`.

        By the scale of each item where the student is told one. A teacher that takes a scale itself is told it. Of held
        frames it sees what is clean.
        """
        teacher, scale_B = self._part("teacher"), scale_of(cond_BD)
        scale = self.distillation.taught_scale if scale_B is None else scale_B
        denoise = teacher if held is None else held.of(teacher)
        if getattr(teacher, "takes_scale", False):
            return with_guidance(denoise, told_scale(cond_BD, scale))
        return with_guidance(denoise, without_scale(cond_BD), self.conditioner.null(1), scale)

    def warm_start_loss(self, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> tuple[Tensor, dict]:
        """The warm start's loss of one batch (`warm_start_loss`)."""
        teacher, settings = self.guided_teacher(cond_BD), self.distillation
        return warm_start_loss(self.denoiser("online"), teacher, self.schedule, z0, cond_BD, settings.x0_clamp,
                               generator, settings.warm_start_snr)

    # the step

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send a batch without a wait where its loader has it in page-locked memory; Lightning waits for each."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=device.type != "mps")  # where Lightning does not trust it
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: LatentBatch, batch_idx: int) -> dict[str, Any]:
        """One batch: student loss and step, averages, then the steps of what is trained beside.

        Returns:
            `loss`, this process' own, and `watched`, the means over all processes of everything that must stay finite.
        """
        started = time.perf_counter()
        generator = keyed_generator(self.seed, "distil", 0, self.batches_seen)
        self.batches_seen += 1
        last = self.batches_seen % self.optimization.accumulate == 0
        lr = self.optimization.lr * self._lr_factor()
        z0 = self.codec.normalise(batch.latents_BCTF)
        cond_BD = self._condition(batch, generator)
        carried = None
        if self.global_step < self.distillation.warm_start_steps:
            loss, parts = self.warm_start_loss(z0, cond_BD, generator)
        else:
            loss, parts, carried = self.objective(batch, z0, cond_BD, generator)
        self._backward(loss, self.manual_backward)
        if last:
            parts["grad_norm_student"] = self._student_step(lr)
        if carried is not None:
            parts |= self.other_steps(carried, last)
        watched = mean_over_ranks({"loss": loss, **parts})
        self._log_parts(watched, lr, len(batch), time.perf_counter() - started)
        return {"loss": loss.detach(), "watched": watched}

    def _backward(self, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        # Autocast would reach into the backward pass: the matrix products of layers that ran in float32 (the heads, R1)
        # would be cast there. What ran in bf16 goes back in bf16 without it.
        with torch.autocast(self.device.type, enabled=False):
            backward(loss / self.optimization.accumulate)

    def _student_step(self, lr: float) -> Tensor:
        optimizer = self._optimizers()[0]
        norm = nn.utils.clip_grad_norm_(self._student_parameters(), self.optimization.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.student_ema_target.update(self.student)
        self.student_ema_slow.update(self.student)
        return norm.detach()

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student."""
        o = self.optimization
        return [
            torch.optim.AdamW(
                self._student_parameters(), o.lr, (o.betas[0], o.betas[1]), weight_decay=o.weight_decay, fused=True
            )
        ]

    def _student_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.student.parameters() if parameter.requires_grad]

    def _progress(self) -> float:
        """Share of the run's steps after the warm start that are done."""
        warm = self.distillation.warm_start_steps
        return max(0, self.global_step - warm) / max(1, self._total_steps() - warm)

    def _steps_in(self, batches: int) -> int:
        """Steps of the student that so many batches hold."""
        return batches // self.optimization.accumulate

    def _total_steps(self) -> int:
        """Steps of the whole run. Lightning's own estimate takes every batch for a step under manual optimization."""
        bounds = [self.trainer.max_steps] if self.trainer.max_steps != -1 else []
        if self.trainer.max_epochs not in (None, -1) and self.trainer.num_training_batches != math.inf:
            batches = self.trainer.max_epochs * int(self.trainer.num_training_batches)
            bounds.append(self._steps_in(batches))
        if not bounds:
            raise MusiccmError(
                "trainer.max_steps: expected the number of steps, found none (and no max_epochs): the curriculum and "
                "the learning rate are shares of the run. Set it, whether or not max_time ends the run earlier."
            )
        return min(bounds)

    def _lr_factor(self) -> float:
        o = self.optimization
        return learning_rate_factor(self.global_step, o.warmup_steps, self._progress(), o.decay_share,
                                    o.final_lr_share, o.decay)

    # logs

    def _log_parts(self, parts: dict[str, Tensor], lr: float, samples: int, seconds: float) -> None:
        rate = samples * self.trainer.world_size / seconds
        self.step_log.write(self, parts, {"samples_per_s": rate, "lr": lr})
        every = self.trainer.log_every_n_steps
        if every and self.global_step % every == 0:
            self.log("train/ema_distance", self.student_ema_slow.distance(self.student))

    def setup(self, stage: str) -> None:
        """As `StepNetworks.setup`; of the test loader a single batch is read, as `test_step` does nothing with it."""
        super().setup(stage)
        if stage == "test" and type(self).test_step is DistilledSystem.test_step:
            self.trainer.limit_test_batches = 1  # with none Lightning would end before the callbacks are called

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the test loader holds the references, which the Evaluation callback reads itself."""
