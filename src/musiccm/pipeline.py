"""Text in, waveform out: what users install."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion import AnyCondition, noise_process
from musiccm.errors import MusiccmError
from musiccm.long_form import LongMusic, check_duration, check_texts, compose
from musiccm.models.acceleration.networks import CompiledNetwork, channels_last, suit_cpu, to_bfloat16
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SETTINGS_FILE
from musiccm.models.bundle.student_record import (
    DEFAULT_STEPS,
    check_sampler,
    is_student,
    recorded_grid,
    recorded_guidance,
    recorded_sampler,
)
from musiccm.models.denoiser import Consistency, Denoiser, takes_scale
from musiccm.samplers import (
    Sampler,
    SamplerSpec,
    Stepper,
    sample_noise,
    sample_seeds,
    seeded_noise_fn,
    student_stepper,
    suited_sampler,
    teacher_stepper,
)
from musiccm.samplers.steppers import TEACHER_SAMPLER

TEACHER_STEPS = 50
TEACHER_GUIDANCE_SCALE = 3.0  # MusicCM's w = 2


class Pipeline(LongMusic):
    """Makes music with a bundle: few-step with a distilled student, guided DDIM with a teacher.

    Which of the two a bundle is, its scheduler says: a student's (`is_student`) carries the timestep grid that
    it was trained on.

    Args:
        bundle: The bundle.
        decoder: `fast`, `original`, or None for the fast one where there is one: see `Bundle.codec`.

    Raises:
        MusiccmError: If its parts do not fit together, or a student's record contradicts its scheduler.

    Examples:
        >>> from musiccm import Pipeline
        >>> pipeline = Pipeline.from_pretrained("musiccm-tiny-student")
        >>> waveforms_BS = pipeline(["a calm piano melody", "slow organ chords"], steps=1, seed=0)
        >>> waveforms_BS.shape, pipeline.sample_rate_hz
        (torch.Size([2, 81920]), 16000)
    """

    def __init__(self, bundle: Bundle, decoder: str | None = None) -> None:
        self.bundle = bundle
        _check_channels(bundle)
        bundle.check_condition()
        scheduler = bundle.scheduler_config
        self.is_student = is_student(scheduler)
        self.record: dict[str, Any] = bundle.settings.get("distillation") or {}
        check_sampler(self.record, scheduler, bundle.root_of("scheduler") / "scheduler" / "scheduler_config.json")
        try:
            self.sampler()
            self.guidance = recorded_guidance(self.record)
        except MusiccmError as error:
            raise MusiccmError(f"{bundle.path / SETTINGS_FILE}: distillation: {error}; restore it, or export the "
                               "student again") from error
        if self.is_student:
            _check_branch(bundle, self.guidance.kind)
        self.schedule = noise_process(scheduler)
        self.prediction_type = bundle.prediction_type
        self.conditioner = bundle.conditioner()
        self.codec = bundle.codec(decoder)
        self.latent_shape = bundle.latent_shape()
        self.denoiser = Denoiser(bundle.unet, self.schedule, self.prediction_type).eval()
        self.device = torch.device("cpu")
        if self.is_student:
            self.grid = recorded_grid(scheduler)
            self.consistency = Consistency(
                self.denoiser, timestep_scaling=float(scheduler.get("timestep_scaling", 10.0))
            )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, decoder: str | None = None
    ) -> Pipeline:
        """Read a bundle from a directory, by a packaged name (`musiccm-tiny-student`) or from the hub.

        Args:
            path: See `Bundle.from_pretrained`.
            dtype: Type of the weights in memory.
            decoder: See `Pipeline`.

        Raises:
            MusiccmError: If the bundle is missing, incomplete or inconsistent, or lacks the decoder.
        """
        return cls(Bundle.from_pretrained(path, dtype=dtype), decoder)

    @property
    def accelerated(self) -> bool:
        """Whether `accelerate` was called, on this pipeline or another of the same `Bundle`: they share the U-Net."""
        return getattr(self.bundle.unet, "accelerated", False)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the networks.

        Raises:
            MusiccmError: They were made for the device that they are on by `accelerate`.
        """
        if self.accelerated:
            raise MusiccmError(f"the networks were made fast for {self.device} and cannot be moved; call "
                               "to(device) first, then accelerate()")
        self.device = torch.device(device)
        for module in (self.denoiser, self.conditioner, self.codec):
            module.to(self.device)
        return self

    def accelerate(self, half: bool = False, backend: str | Callable[..., Any] | None = None) -> Pipeline:
        """Put the U-Net into the form that its device computes fastest; docs/speed.md says what it brings.

        By itself it changes the sound by rounding only, as another machine would. On a CPU, kernels are laid out with
        their channels last, and wide convolutions are computed in ways of fewer operations; on a GPU there is no gain
        without one of the options. It cannot be undone.

        Args:
            half: Let the U-Net compute in bf16, but for its last layer: for GPUs, and for CPUs that have bf16 units.
            backend: Also compile the U-Net, by this backend of `torch.compile`. `inductor` takes a minute or more at
                the first call with each batch size, which pays where many clips are made; on a GPU it captures a CUDA
                graph.

        Returns:
            The pipeline.

        Raises:
            MusiccmError: It was called before.
        """
        if self.accelerated:
            raise MusiccmError("this pipeline was accelerated before; make another one to do it in another way")
        self.bundle.unet.accelerated = True  # type: ignore[assignment]
        if half:
            to_bfloat16(self.denoiser.unet)
        if self.device.type == "cpu" and backend is None:
            suit_cpu(self.denoiser.unet)
        if self.device.type == "cpu" or backend is not None:  # GPUs have no such kernel for norms unless it is compiled
            channels_last([self.denoiser.unet])
        if backend is not None:
            self.denoiser.unet = CompiledNetwork(self.denoiser.unet, backend)
        return self

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.bundle.mel.sample_rate_hz

    @property
    def frame_samples(self) -> int:
        """Samples of a latent frame."""
        return self.codec.downsampling * self.bundle.mel.hop_length

    @property
    def duration_s(self) -> float:
        """Length of a clip, and of the window that longer music is made in."""
        return self.latent_shape[1] * self.frame_samples / self.sample_rate_hz

    def __call__(
        self,
        prompts: str | Sequence[str],
        steps: int | None = None,
        seed: int = 0,
        *,
        seconds: float | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Make one clip a prompt.

        A clip depends on its prompt, the seed and its place in the list, not on what else is in the list.

        Args:
            prompts: One text or several.
            steps: Sampling steps; by default what a student was exported with (4), or 50 for a teacher.
            seed: Of the noise.
            seconds: Length, by default the one that the model was trained on; see `compose` for others.
            guidance_scale: For a teacher, 3 by default. For a student that was exported with one to choose, from the
                range that it was trained on (`guidance` is `variable`) or by a second network call each step
                (`direct`), and by default as exported; any other takes none.
            sampler: A sampler, its name, or its name and fields, such as `{"name": "lcm", "gamma": 0.6}`
                (`make_sampler`); by default the one that a student was exported with, and `ddim` for a teacher.
            batch_size: Clips computed at once.

        Returns:
            Waveforms of shape [B, S] on the CPU, float32.

        Raises:
            MusiccmError: For empty prompts, a step count off the grid, guidance that a student does not take, a sampler
                that does not suit the model, or an impossible duration.
        """
        texts = check_texts(prompts)
        seeds = sample_seeds(seed, len(texts))
        if seconds is not None and not math.isclose(check_duration(seconds), self.duration_s, abs_tol=1e-3):
            stepper = self.stepper(steps, guidance_scale, sampler=sampler)
            return torch.stack([compose(self, text, seconds, stepper, own, batch_size=batch_size)
                                for text, own in zip(texts, seeds, strict=True)])
        with torch.inference_mode():
            cond_BD = self.conditioner.prompts(texts)
            clips = []
            for start in range(0, len(texts), batch_size):
                part = slice(start, start + batch_size)
                z = self.latents(cond_BD[part], seeds[part], steps, guidance_scale=guidance_scale, sampler=sampler)
                clips.append(self.codec.decode(z).float().cpu())
        return torch.cat(clips)  # outside the mode: a tensor like any other

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """The sampler of this bundle at work.

        Args:
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            strength: Part of the noise levels that is gone through, from the cleanest up; below 1 to vary a clip.
            sampler: See `__call__`.

        Returns:
            The network with its guidance, its timesteps and its rule.

        Raises:
            MusiccmError: As `__call__`; or a strength that is not above 0 and up to 1.
        """
        rule = self.sampler(sampler)
        if self.is_student:
            steps = self.record.get("default_steps", DEFAULT_STEPS) if steps is None else steps
            return student_stepper(self.consistency, self.schedule, self.grid, steps, rule, guidance_scale, strength,
                                   guidance=self.guidance, null=self.conditioner.null)
        return teacher_stepper(
            self.denoiser, self.schedule, self.conditioner.null, TEACHER_STEPS if steps is None else steps,
            TEACHER_GUIDANCE_SCALE if guidance_scale is None else guidance_scale, rule, strength,
        )

    def sampler(self, spec: SamplerSpec | None = None) -> Sampler:
        """The rule by which this bundle is sampled.

        Args:
            spec: See `__call__`.

        Returns:
            The sampler.

        Raises:
            MusiccmError: It is unknown, or does not suit this kind of model.
        """
        if spec is None:
            spec = recorded_sampler(self.record) if self.is_student else TEACHER_SAMPLER
        return suited_sampler(spec, self.is_student)

    @torch.no_grad()
    def latents(
        self,
        cond_BD: AnyCondition,
        seeds: Sequence[int],
        steps: int | None = None,
        *,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
    ) -> Tensor:
        """Sample normalised latents.

        Args:
            cond_BD: Conditions, vectors or tokens.
            seeds: One a sample.
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            sampler: See `__call__`.

        Returns:
            z_BCTF.

        Raises:
            MusiccmError: As `__call__`.
        """
        stepper = self.stepper(steps, guidance_scale, sampler=sampler)
        noise = sample_noise(seeds, self.latent_shape).to(self.device)
        return stepper.sample(cond_BD, noise, seeded_noise_fn(seeds, self.latent_shape))


def _check_branch(bundle: Bundle, kind: str) -> None:
    """What the U-Net's configuration and the student's record say of a guidance branch, before any weights are read."""
    has = takes_scale(bundle.config("unet"))
    if has != (kind == "variable"):
        raise MusiccmError(
            f"{bundle.path}: unet/config.json {'states' if has else 'lacks'} the guidance branch (addition_embed_type: "
            f"guidance), but {SETTINGS_FILE} says distillation.guidance: {kind}; restore the two files, or export the "
            "student again")


def _check_channels(bundle: Bundle) -> None:
    """The U-Net's channels against the VAE's, before any weights are read."""
    (taken,), (raw,) = bundle.stated("unet", "in_channels"), bundle.stated("vae", "latent_channels")
    given = raw * bundle.latent_patch**2
    if taken != given:
        raise MusiccmError(f"{bundle.path}: unet takes {taken} channels, vae gives {given} (latent_patch "
                           f"{bundle.latent_patch}); the two are from different models")
