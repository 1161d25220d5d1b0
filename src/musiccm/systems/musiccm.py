"""MusicCM: consistency distillation with an adversarial discriminator, under manual optimization."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import (
    NoiseSchedule,
    check_skip,
    expand_to,
    jump_to_target,
    sample_grid_index,
    student_grid,
    to_eps,
    training_target,
    with_guidance,
)
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import discriminator_loss, generator_loss
from musiccm.losses.distillation import distillation_loss
from musiccm.models.acceleration import channels_last
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.models.discriminator import Discriminator
from musiccm.models.ema import Ema
from musiccm.models.features import ClapFeatures
from musiccm.models.half import half_copy
from musiccm.systems import speed
from musiccm.systems.checkpoint_fit import check_fit, identity
from musiccm.systems.clock import clock_stopped
from musiccm.systems.parallel import (
    average_gradients,
    mean_over_ranks,
    own_rows,
    rank_and_world,
    shard,
    share_weights,
    spread,
    whole,
)
from musiccm.systems.settings import Adversarial, Distillation, Optimization

log = logging.getLogger(__name__)

#: Frozen parts live under this name; checkpoints leave them out, for the bundle has them.
FROZEN = "frozen."
#: Above this timestep the warm start clamps the teacher's x0.
CLAMP_FROM_T = 900


class MusicCM(pl.LightningModule):
    """Distills the teacher of a bundle into a few-step student (MusicCM, arXiv 2404.13358).

    Only the student's steps advance `trainer.global_step`. All randomness is keyed by (seed, batch) and drawn for the
    global batch, so a resumed run draws what the uninterrupted one would have drawn, and so does one on other devices.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: SPEC 4.
        adversarial: SPEC 5.
        optimization: optimizer of the student.
        seed: seed of timesteps, noise and crops.
    """

    student: nn.Module

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        adversarial: Adversarial | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bundle_name, self.seed = bundle, seed
        self.distillation = distillation or Distillation()
        self.adversarial = adversarial or Adversarial()
        self.optimization = optimization or Optimization()
        self.distillation.check()
        self.adversarial.check()
        self.optimization.check()
        self.bundle = Bundle.from_pretrained(bundle)
        if self.bundle.scheduler_config.get("_class_name") == "LCMScheduler":
            raise MusiccmError(
                f"model.init_args.bundle: {bundle} is a distilled student, which must not be guided and so cannot "
                "teach; name a teacher's bundle"
            )
        self.schedule = NoiseSchedule.from_config(self.bundle.scheduler_config)
        self.grid = student_grid(self.schedule.num_train_timesteps, self.distillation.grid_points)
        for phase in self.distillation.curriculum:
            if phase.jumps != "to_zero":
                check_skip(phase.skip, self.grid)
        self.batches_seen = 0
        self._unfinished: dict[str, Tensor] = {}
        self._half: dict[str, nn.Module] = {}

        teacher = Denoiser(self.bundle.unet, self.schedule, self.bundle.prediction_type)
        self.frozen = nn.ModuleDict(
            {"teacher": teacher, "codec": self.bundle.codec("original"), "conditioner": self.bundle.conditioner()}
        )
        self.student = copy.deepcopy(self.bundle.unet).requires_grad_(True)
        self.student_ema_target = Ema(self.student, self.distillation.target_ema_decay)
        self.student_ema_slow = Ema(self.student, self.distillation.eval_ema_decay)
        self.discriminator: Discriminator | None = None
        if self.adversarial.weight > 0:
            features = self._feature_network()
            self.frozen["features"] = features
            cond_width = self.frozen["conditioner"].width + features.embed_width
            self.discriminator = Discriminator(features.widths, cond_width, self.adversarial.head_width)
        self.frozen.requires_grad_(False).eval()
        # DDP's private switch, set before it wraps the system: it looks after the student alone. One backward pass
        # reaches all of that, so that nothing unused need be searched for, and the heads' pass does not send the
        # student's buckets round a second time. Frozen parts and averages are alike on all processes as they are.
        others = [*self.named_parameters(), *self.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in others if not name.startswith("student.")]

    def _feature_network(self) -> nn.Module:
        kind = self.adversarial.features
        if kind == "clap":
            return ClapFeatures(self.bundle.clap, self.bundle.feature_extractor, self.bundle.mel)
        if kind == "audiomae":
            features, frames = self.bundle.evaluators["audiomae"], self.adversarial.crop_frames
            patch, factor = features.config.patch_size, self.frozen["codec"].downsampling
            if frames is not None and frames * factor < patch:
                raise MusiccmError(
                    f"adversarial.crop_frames: expected at least {-(-patch // factor)} latent frames of {factor} mel "
                    f"frames, to fill a patch of {patch} of the audiomae features, found {frames}."
                )
            return features
        raise MusiccmError(f"adversarial.features: expected 'audiomae' or 'clap', found {kind!r}.")

    # what callbacks and commands read

    @property
    def teacher(self) -> Denoiser:
        """The frozen teacher, as a denoiser."""
        return self.frozen["teacher"]

    @property
    def codec(self) -> nn.Module:
        """The frozen `LatentCodec`."""
        return self.frozen["codec"]

    @property
    def conditioner(self) -> nn.Module:
        """The frozen `ClapConditioner`."""
        return self.frozen["conditioner"]

    @property
    def guidance_scale(self) -> float:
        """The scale that the student was taught."""
        return self.distillation.guidance_scale

    def denoiser(self, which: str = "slow") -> Denoiser:
        """The student as a denoiser: its `slow` (evaluated) or `target` average, or the `online` weights."""
        networks = {"slow": self.student_ema_slow.module, "target": self.student_ema_target.module}
        network = self.student if which == "online" else networks[which]
        return Denoiser(network, self.schedule, self.distillation.prediction_type)

    def consistency(self, which: str = "slow") -> Consistency:
        """The consistency function of the same weights."""
        return Consistency(
            self.denoiser(which), self.distillation.sigma_data, self.distillation.timestep_scaling
        )

    def train(self, mode: bool = True) -> MusicCM:
        """Switch the student and the heads; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    # the losses

    def _condition(self, batch: LatentBatch, generator: torch.Generator) -> Tensor:
        share = self.distillation.audio_condition_share
        hears = own_rows(lambda n: torch.rand(n, 1, generator=generator), len(batch)) < share
        return torch.where(hears.to(batch.text_BD.device), batch.audio_BD, batch.text_BD)

    def _guided_teacher(self, cond_BD: Tensor) -> Any:
        null_BD = self.conditioner.null(1)
        return with_guidance(self._part("teacher"), cond_BD, null_BD, self.guidance_scale)

    def _part(self, name: str) -> nn.Module:
        """A frozen part as the step uses it: its bf16 copy where there is one."""
        return self._half[name] if name in self._half else self.frozen[name]

    def warm_start_loss(self, z0: Tensor, cond_BD: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
        """Regression of the student's own prediction onto the teacher's guided one, at uniform timesteps (SPEC 2).

        The teacher's x0 is clamped at the noisiest steps, where an epsilon network's x0 divides its error by alpha.
        """
        steps = self.schedule.num_train_timesteps
        t_B = own_rows(lambda n: torch.randint(steps, (n,), generator=generator), len(z0)).to(z0.device)
        z = self.schedule.add_noise(z0, _normal(z0, generator), t_B)
        alpha_B, sigma_B = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        with torch.no_grad():
            x0 = self._guided_teacher(cond_BD)(z, t_B)
            bound = self.distillation.x0_clamp
            x0 = torch.where(expand_to(t_B > CLAMP_FROM_T, x0), x0.clamp(-bound, bound), x0)
            eps = to_eps("sample", x0, z, alpha_B, sigma_B)
            target = training_target(self.distillation.prediction_type, x0, eps, alpha_B, sigma_B)
        loss = (self.denoiser("online").output(z, t_B, cond_BD) - target).square().mean()
        return loss, {"loss_warm_start": loss.detach()}

    def distil(self, z0: Tensor, cond_BD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, dict]:
        """`L_distil` of SPEC 4. Returns the student's x0, the loss and its parts."""
        settings, phase = self.distillation, self.distillation.phase(self._progress())
        mode, tail = settings.timestep_mode, settings.tail
        index = own_rows(lambda n: sample_grid_index(n, len(self.grid), generator, mode, tail), len(z0))
        t_B = self.grid[index].to(z0.device)
        z = self.schedule.add_noise(z0, _normal(z0, generator), t_B)
        with torch.no_grad():
            teacher = self._guided_teacher(cond_BD)
            z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, phase.skip, phase.jumps, settings.solver)
            clean = phase.jumps == "to_zero"
            target = z_hat if clean else self.consistency("target")(z_hat, t_next_B, cond_BD)
        x0_pred = self.consistency("online")(z, t_B, cond_BD)
        loss, parts = distillation_loss(x0_pred, target, settings.distance, settings.huber_h)
        return x0_pred, loss, parts

    def features_of(self, z_BCTF: Tensor, crop: slice | None) -> tuple[list[Tensor], Tensor]:
        """Frozen features of decoded latents, and their embedding [B, D]; gradients flow to the latents."""
        mel_BMN = self._part("codec").decode_mel(z_BCTF, crop, self.adversarial.crop_context)
        return self._part("features").with_embedding(mel_BMN)

    def _crop(self, frames: int, generator: torch.Generator) -> slice | None:
        length = self.adversarial.crop_frames
        if length is None or length >= frames:
            return None
        start = int(torch.randint(frames - length + 1, (1,), generator=generator))
        return slice(start, start + length)

    # the step

    def training_step(self, batch: LatentBatch, batch_idx: int) -> dict[str, Any]:
        """One batch: student loss and step, EMAs, then the discriminator's loss and step.

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
        adversarial = None
        if self.global_step < self.distillation.warm_start_steps:
            loss, parts = self.warm_start_loss(z0, cond_BD, generator)
        else:
            x0_pred, loss_distil, parts = self.distil(z0, cond_BD, generator)
            loss = self.distillation.weight * loss_distil
            if self.discriminator is not None and self.global_step >= self.adversarial.start_step:
                adversarial = self._judge(z0, x0_pred, batch.text_BD, generator)
                loss = loss + self.adversarial.weight * adversarial["loss_g"]
                parts["loss_g"] = adversarial["loss_g"].detach()
        self._backward(loss, self.manual_backward)
        if last:
            parts["grad_norm_student"] = self._student_step(lr)
        if adversarial is not None:
            parts |= self._discriminator_step(adversarial, last)
        watched = mean_over_ranks({"loss": loss, **parts})
        self._log_parts(watched, lr, len(batch), time.perf_counter() - started)
        return {"loss": loss.detach(), "watched": watched}

    def _backward(self, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        # Autocast would reach into the backward pass: the matrix products of layers that ran in float32 (the heads, R1)
        # would be cast there. What ran in bf16 goes back in bf16 without it.
        with torch.autocast(self.device.type, enabled=False):
            backward(loss / self.optimization.accumulate)

    def _judge(self, z0: Tensor, x0_pred: Tensor, text_BD: Tensor, generator: torch.Generator) -> dict[str, Any]:
        crop = self._crop(z0.shape[2], generator)
        with torch.no_grad():
            real, audio_BD = self.features_of(z0, crop)
            cond_BD = torch.cat([text_BD, audio_BD], dim=1)
        fake, _ = self.features_of(x0_pred, crop)
        loss_g, _ = generator_loss(self.discriminator, fake, cond_BD)
        return {"loss_g": loss_g, "real": real, "fake": [f.detach() for f in fake], "cond": cond_BD}

    def _student_step(self, lr: float) -> Tensor:
        optimizer = self._optimizers()[0]
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.optimization.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.student_ema_target.update(self.student)
        self.student_ema_slow.update(self.student)
        return norm.detach()

    def _discriminator_step(self, judged: dict[str, Any], last: bool) -> dict[str, Tensor]:
        assert self.discriminator is not None  # judged by it just before
        optimizer = self._optimizers()[1]
        loss, parts = discriminator_loss(
            self.discriminator, judged["real"], judged["fake"], judged["cond"], self.adversarial.r1_gamma
        )
        # Not `manual_backward`, which would have DDP wait for gradients of the student.
        self._backward(loss, Tensor.backward)
        average_gradients(self.discriminator.parameters())
        if last:
            norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.optimization.clip_norm)
            with clock_stopped(optimizer):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            parts["grad_norm_discriminator"] = norm.detach()
        return parts

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student, and for the heads where there are any."""
        o, a = self.optimization, self.adversarial
        optimizers = [
            torch.optim.AdamW(
                self.student.parameters(), o.lr, (o.betas[0], o.betas[1]), weight_decay=o.weight_decay, fused=True
            )
        ]
        if self.discriminator is not None:
            heads = self.discriminator.parameters()
            optimizers.append(torch.optim.AdamW(heads, a.lr, (a.betas[0], a.betas[1]), weight_decay=0.0, fused=True))
        return optimizers

    def _progress(self) -> float:
        """Share of the run's steps after the warm start that are done."""
        warm = self.distillation.warm_start_steps
        return max(0, self.global_step - warm) / max(1, self._total_steps() - warm)

    def _total_steps(self) -> int:
        """Steps of the whole run. Lightning's own estimate takes every batch for a step under manual optimization."""
        bounds = [self.trainer.max_steps] if self.trainer.max_steps != -1 else []
        if self.trainer.max_epochs not in (None, -1) and self.trainer.num_training_batches != math.inf:
            batches = self.trainer.max_epochs * int(self.trainer.num_training_batches)
            bounds.append(batches // self.optimization.accumulate)
        if not bounds:
            raise MusiccmError(
                "trainer.max_steps: expected the number of steps, found none (and no max_epochs): the curriculum and "
                "the learning rate are shares of the run. Set it, whether or not max_time ends the run earlier."
            )
        return min(bounds)

    def setup(self, stage: str) -> None:
        """Lay out the networks before a strategy wraps them."""
        if stage == "fit" and self.optimization.gradient_checkpointing:
            speed.recompute_activations([self.student, self.codec.vae])
        if stage == "fit" and self.optimization.channels_last:
            averages = [self.student_ema_target, self.student_ema_slow]
            channels_last([self.student, *averages, self.teacher, self.codec])

    def configure_model(self) -> None:
        """Under `Sharded`, spread the four U-Nets over the processes; heads and decoders stay whole."""
        mesh = self.device_mesh
        if mesh is not None:
            averages = (self.student_ema_target.module, self.student_ema_slow.module)
            for unet in (self.student, *averages, self.teacher.unet):
                shard(unet, mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Refuse what would train wrongly without a word; copy and compile, now that all is on its device."""
        if str(self.trainer.precision).startswith("16"):
            raise MusiccmError(
                f"trainer.precision: expected 32-true or bf16-mixed, found {self.trainer.precision!r}. Under manual "
                "optimization Lightning clips float16 gradients while they are still scaled."
            )
        if self.discriminator is not None:
            share_weights(self.discriminator)
        self._use_fast_networks()

    def _use_fast_networks(self) -> None:
        if self.trainer.precision == "bf16-mixed" and self.optimization.half_frozen:
            self._half = {"teacher": half_copy(self.teacher, [self.schedule])}
            if self.discriminator is not None:
                codec, features = self.codec, self.frozen["features"]
                unheard = [features.clap.text_model] if isinstance(features, ClapFeatures) else []
                self._half["codec"] = half_copy(codec, [codec.vocoder, codec.vae.encoder])
                self._half["features"] = half_copy(features, unheard)
        if self.optimization.compile is not None:
            target, teacher = self.student_ema_target.module, self._part("teacher").unet
            speed.compile_networks([self.student, target, teacher], self.optimization.compile)

    def on_fit_end(self) -> None:
        """Let the copies go."""
        self._half = {}

    def on_train_start(self) -> None:
        """Take up the optimizers' state, and the gradients of a step that the checkpoint was saved in the middle of."""
        for optimizer in self._optimizers():
            speed.match_strides(optimizer.optimizer)
        for name, parameter in self._trained():
            if name in self._unfinished:
                gradient = self._unfinished[name].to(parameter.device, parameter.dtype)
                parameter.grad = spread(gradient, parameter)
        self._unfinished = {}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def _lr_factor(self) -> float:
        o = self.optimization
        if self.global_step < o.warmup_steps:
            return (self.global_step + 1) / o.warmup_steps
        left = 1.0 - self._progress()
        if left >= o.decay_share:
            return 1.0
        return o.final_lr_share + (1 - o.final_lr_share) * 0.5 * (1 - math.cos(math.pi * left / o.decay_share))

    # guards, logs, checkpoints

    def _log_parts(self, parts: dict[str, Tensor], lr: float, samples: int, seconds: float) -> None:
        self.log("train/loss", parts["loss"], prog_bar=True)
        self.log("train/samples_per_s", samples * self.trainer.world_size / seconds, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in parts.items() if name != "loss"} | {"train/lr": lr})
        every = self.trainer.log_every_n_steps
        if every and self.global_step % every == 0:
            self.log("train/ema_distance", self.student_ema_slow.distance(self.student))

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """How far the slow average is from its own answer one guided teacher jump further on; fixed noise."""
        # Keyed by clip, so that the figure depends neither on the batch size nor on the number of processes.
        generators = [keyed_generator(self.seed, "validate", name) for name in batch.ids]
        z0 = self.codec.normalise(batch.latents_BCTF)
        t_B = self.grid[torch.cat([sample_grid_index(1, len(self.grid), g) for g in generators])].to(z0.device)
        noise = torch.stack([torch.randn(z0.shape[1:], generator=g) for g in generators]).to(z0.device)
        z = self.schedule.add_noise(z0, noise, t_B)
        f = self.consistency("slow")
        teacher = self._guided_teacher(batch.text_BD)
        phase, settings = self.distillation.phase(1.0), self.distillation
        # A jump to clean may have any size; one on the grid is needed here, where the student answers at both ends.
        skip = int(self.grid[0]) + 1 if phase.jumps == "to_zero" else phase.skip
        z_hat, t_next_B = jump_to_target(teacher, self.schedule, z, t_B, skip)
        loss, _ = distillation_loss(
            f(z, t_B, batch.text_BD), f(z_hat, t_next_B, batch.text_BD), settings.distance, settings.huber_h
        )
        self.log("val/loss_distil", loss, batch_size=len(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the test loader holds the references, which the Evaluation callback reads itself."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen parts out; the bundle has them."""
        state = checkpoint["state_dict"]
        # Contiguous, whatever `channels_last` says: safetensors, which an export writes, takes no other.
        checkpoint["state_dict"] = {
            name: value.contiguous() for name, value in state.items() if not name.startswith(FROZEN)
        }
        checkpoint["batches_seen"] = self.batches_seen
        if self.batches_seen % self.optimization.accumulate:
            # Saved by the clock or at the end of an epoch, between two batches of one step.
            grads = {name: parameter.grad for name, parameter in self._trained()}
            checkpoint["gradients"] = {name: whole(grad) for name, grad in grads.items() if grad is not None}
        checkpoint["student"] = self._identity
        checkpoint["global_batch"] = self._global_batch()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parts back, so that loading stays strict, and refuse a checkpoint of another shape."""
        self.batches_seen = checkpoint.get("batches_seen", 0)
        self._unfinished = checkpoint.get("gradients", {})
        mine = {name: value for name, value in self.state_dict().items() if name.startswith(FROZEN)}
        checkpoint["state_dict"] |= mine
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        path = getattr(self._trainer, "ckpt_path", None) or "the checkpoint"
        check_fit(str(path), self.state_dict(), checkpoint, self._identity, resuming=fitting)
        before, now = checkpoint.get("global_batch"), self._global_batch()
        if fitting and before != now and None not in (before, now):
            if rank_and_world()[0] == 0:
                log.warning("%s was trained with %s clips a step over all processes, this run has %s "
                            "(data.init_args.batch_size x processes): the rest of this epoch repeats or leaves out "
                            "clips", path, before, now)

    def _global_batch(self) -> int | None:
        """Clips of one batch over all processes, as far as the data module tells."""
        data: Any = getattr(self._trainer, "datamodule", None)
        size = getattr(data, "batch_size", None)
        return None if size is None else size * self.trainer.world_size

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self.bundle, self.distillation, self.adversarial, self.optimization, self.seed)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = own_rows(lambda n: torch.randn((n, *like.shape[1:]), generator=generator), len(like))
    return noise.to(like.device)
