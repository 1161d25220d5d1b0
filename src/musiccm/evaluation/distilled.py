"""What evaluation needs of a distillation, and its teacher and its student as models that make music."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from musiccm.diffusion import ConsistencyFunction, Denoise, NoiseProcess, StudentGuidance
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import DEFAULT_STEPS
from musiccm.models.codec import LatentCodec
from musiccm.samplers import SamplerSpec, Stepper, student_stepper, teacher_stepper
from musiccm.samplers.steppers import STUDENT_SAMPLER, TEACHER_SAMPLER


class Distilled(Protocol):
    """A system in which a student is distilled from a teacher; `systems.distillation.DistilledSystem` is one."""

    @property
    def bundle(self) -> Bundle:
        """The teacher's."""

    @property
    def codec(self) -> Any:
        """A `LatentCodec`: what makes sound of latents."""

    @property
    def conditioner(self) -> Any:
        """See `MusicModel.conditioner`: what the networks are conditioned by."""

    @property
    def teacher(self) -> Denoise:
        """The frozen teacher."""

    @property
    def schedule(self) -> NoiseProcess:
        """The noise process of both."""

    @property
    def grid(self) -> Tensor:
        """The student's timesteps, ascending."""

    @property
    def guidance_scale(self) -> float:
        """The scale by which the teacher is guided, and by default the student."""

    @property
    def student_guidance(self) -> StudentGuidance:
        """How the student is guided."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""

    def consistency(self, which: str = "slow") -> ConsistencyFunction:
        """The student by its slow average, the one that is evaluated."""


def as_distilled(module: Any) -> Distilled:
    """A system, once it is known to have what evaluation needs.

    Args:
        module: A `LightningModule`, or anything.

    Returns:
        It.

    Raises:
        MusiccmError: It lacks some of `Distilled`.
    """
    needed = [name for name in vars(Distilled) if not name.startswith("_")]
    if lacking := [name for name in needed if not hasattr(module, name)]:
        raise MusiccmError(f"evaluation and panels need a distillation, and {type(module).__name__} has no "
                           f"{', '.join(lacking)}; derive it from musiccm.systems.distillation.DistilledSystem, or "
                           "take them out of trainer.callbacks")
    return cast(Distilled, module)


@dataclass(frozen=True)
class _PartOfSystem:
    """What teacher and student have in common."""

    system: Distilled

    @property
    def bundle(self) -> Bundle:
        """The system's."""
        return self.system.bundle

    @property
    def codec(self) -> LatentCodec:
        """The system's decoder."""
        return self.system.codec

    @property
    def conditioner(self) -> Any:
        """The system's conditioner."""
        return self.system.conditioner

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.system.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, T, F)` of a clip of the trained length."""
        return self.system.bundle.latent_shape()

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.system.bundle.sample_rate_hz

    @property
    def frame_samples(self) -> int:
        """Samples of a latent frame."""
        return self.codec.frame_samples

    @property
    def duration_s(self) -> float:
        """Seconds of a clip of the trained length."""
        return self.latent_shape[1] * self.frame_samples / self.sample_rate_hz


@dataclass(frozen=True)
class SystemTeacher(_PartOfSystem):
    """The teacher of a distillation, as a `MusicModel`.

    Args:
        system: The distillation.
        scale: Its guidance, the usual scale.
    """

    scale: float

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """See `Pipeline.stepper`."""
        m = self.system
        return teacher_stepper(
            m.teacher, m.schedule, m.conditioner.null, m.bundle.kind.steps if steps is None else steps,
            self.scale if guidance_scale is None else guidance_scale, sampler or TEACHER_SAMPLER, strength,
        )


@dataclass(frozen=True)
class SystemStudent(_PartOfSystem):
    """The student of a distillation, by its slow average, as a `MusicModel`.

    Args:
        system: The distillation.
        sampler: Its sampler.
    """

    sampler: SamplerSpec = STUDENT_SAMPLER

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """See `Pipeline.stepper`."""
        m = self.system
        return student_stepper(
            m.consistency(which="slow"), m.schedule, m.grid, DEFAULT_STEPS if steps is None else steps,
            sampler or self.sampler, guidance_scale, strength, guidance=m.student_guidance, null=m.conditioner.null,
        )
