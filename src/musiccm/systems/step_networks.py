"""The networks of a distillation as its step uses them: laid out, sharded, held in bf16, compiled."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn

from musiccm.errors import MusiccmError
from musiccm.models.acceleration.half import half_copy
from musiccm.models.acceleration.networks import channels_last
from musiccm.models.bundle import Bundle
from musiccm.models.ema import Ema
from musiccm.systems import speed
from musiccm.systems.parallel import shard
from musiccm.systems.settings import Distillation, Optimization
from musiccm.systems.student_weights import starting_weights


class StepNetworks(pl.LightningModule):
    """Prepares the networks once their devices and processes are known.

    A part of `DistilledSystem`, which sets the attributes below.
    """

    bundle: Bundle
    distillation: Distillation
    optimization: Optimization
    batches_seen: int
    given_teacher: bool
    student: nn.Module
    student_ema_target: Ema
    student_ema_slow: Ema
    frozen: nn.ModuleDict
    #: Copies of frozen parts in bf16, by their names in `frozen`.
    _half: dict[str, nn.Module]

    def setup(self, stage: str) -> None:
        """Give a new run the weights that it starts from, and lay the networks out before a strategy wraps them.

        So is a system that is tested as it is: what `start` names is then what is measured.
        """
        if self.distillation.start is not None and self.trainer.ckpt_path is None and self.batches_seen == 0:
            weights = starting_weights(self.distillation.start, self.bundle, self.distillation, self.student)
            for network in (self.student, self.student_ema_target.module, self.student_ema_slow.module):
                network.load_state_dict(weights)
        if stage == "fit" and self.optimization.gradient_checkpointing:
            decoders = [self.frozen["codec"].vae] if self.bundle.kind.network == "unet" else []
            speed.recompute_activations([self.student, *decoders])  # type: ignore[list-item]
        if stage == "fit" and self.optimization.channels_last:
            averages = [self.student_ema_target, self.student_ema_slow]
            channels_last([self.student, *averages, self.frozen["teacher"], self.frozen["codec"]])

    def configure_model(self) -> None:
        """Under `Sharded`, shard the four U-Nets over the processes; heads and decoders stay whole."""
        mesh = self.device_mesh
        if mesh is not None and self.distillation.lora is not None:
            raise MusiccmError(
                "distillation.lora: the weights that teacher, student and averages hold together cannot be sharded "
                "over processes (trainer.strategy Sharded); use DDP, or train the whole student"
            )
        if mesh is not None:
            averages = (self.student_ema_target.module, self.student_ema_slow.module)
            teacher = [] if self.given_teacher else [self.bundle.network]  # any other stays whole
            for unet in (self.student, *averages, *teacher):
                shard(unet, mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Refuse what would train wrongly without a word; copy and compile, now that all is on its device."""
        if str(self.trainer.precision).startswith("16"):
            raise MusiccmError(
                f"trainer.precision: expected 32-true or bf16-mixed, found {self.trainer.precision!r}. Under manual "
                "optimization Lightning clips float16 gradients while they are still scaled."
            )
        self._use_fast_networks()

    def on_test_start(self) -> None:
        """Compile what an evaluation samples from, teacher and student alike: their times are compared."""
        if self.optimization.compile is not None:
            teacher = self.frozen["teacher"]
            sampled = [getattr(teacher, "unet", teacher), self.student_ema_slow.module]
            speed.compile_networks(sampled, self.optimization.compile)

    def half_parts(self) -> dict[str, nn.Module]:
        """Frozen parts as the step uses them under bf16-mixed, by their names in `frozen`."""
        teacher = self.frozen["teacher"]
        return {"teacher": half_copy(teacher, [self.schedule])}

    def _part(self, name: str) -> nn.Module:
        """A frozen part as the step uses it: its bf16 copy where there is one."""
        return self._half[name] if name in self._half else self.frozen[name]

    def _use_fast_networks(self) -> None:
        if self.trainer.precision == "bf16-mixed" and self.optimization.half_frozen:
            self._half = self.half_parts()
        if self.optimization.compile is not None:
            speed.compile_networks(self.compiled_parts(), self.optimization.compile)

    def compiled_parts(self) -> list[nn.Module]:
        """What a step calls and `optimization.compile` compiles; modules that are called as such."""
        teacher = self._part("teacher")
        return [self.student, self.student_ema_target.module, getattr(teacher, "unet", teacher)]

    def on_fit_end(self) -> None:
        """Let the copies go."""
        self._half = {}
