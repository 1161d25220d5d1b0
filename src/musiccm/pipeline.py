"""Text in, waveform out: what users install."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion import NoiseSchedule, refuse_guidance, sampling_timesteps, student_grid
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.samplers import sample_ddim, sample_few_step, sample_noise, seeded_noise_fn

STUDENT_STEPS, TEACHER_STEPS = 4, 50
TEACHER_GUIDANCE_SCALE = 3.0  # MusicCM's w = 2


class Pipeline:
    """Makes music with a bundle: few-step with a distilled student, guided DDIM with a teacher.

    Which of the two a bundle is, its scheduler says: an `LCMScheduler` is a student, and carries the timestep grid that
    it was trained on.

    Args:
        bundle: The bundle.

    Raises:
        MusiccmError: If its parts do not fit together, or a student's record contradicts its scheduler.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        _check_widths(bundle)
        scheduler = bundle.scheduler_config
        self.is_student = scheduler.get("_class_name") == "LCMScheduler"
        self.schedule = NoiseSchedule.from_config(scheduler)
        self.prediction_type = bundle.prediction_type
        self.conditioner = bundle.conditioner()
        self.codec = bundle.codec()
        self.latent_shape = bundle.latent_shape()
        self.denoiser = Denoiser(bundle.unet, self.schedule, self.prediction_type).eval()
        self.device = torch.device("cpu")
        self.record: dict[str, Any] = bundle.settings.get("distillation", {})
        if self.is_student:
            self._check_record(scheduler)
            self.grid = student_grid(self.schedule.num_train_timesteps, int(scheduler["original_inference_steps"]))
            self.consistency = Consistency(
                self.denoiser, timestep_scaling=float(scheduler.get("timestep_scaling", 10.0))
            )

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
        """Read a bundle from a directory, by a packaged name (`musiccm-tiny-student`) or from the hub.

        Raises:
            MusiccmError: If the bundle is missing, incomplete or inconsistent.
        """
        return cls(Bundle.from_pretrained(path, dtype=dtype))

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the networks."""
        self.device = torch.device(device)
        for module in (self.denoiser, self.conditioner, self.codec):
            module.to(self.device)
        return self

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.bundle.mel.sample_rate_hz

    @property
    def duration_s(self) -> float:
        """Length of a clip."""
        return self.latent_shape[1] * self.codec.downsampling * self.bundle.mel.hop_length / self.sample_rate_hz

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        steps: int | None = None,
        seed: int = 0,
        *,
        duration_s: float | None = None,
        guidance_scale: float | None = None,
        gamma: float | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Make one clip a prompt.

        A clip depends on its prompt, the seed and its place in the list, not on what else is in the list.

        Args:
            prompts: One text or several.
            steps: Sampling steps; by default 4 for a student, 50 for a teacher.
            seed: Of the noise.
            duration_s: Only the bundle's own length for now.
            guidance_scale: For a teacher, 3 by default; a distilled student takes none.
            gamma: For a student: share of fresh noise between steps; by default what it was exported with, or 1.
            batch_size: Clips computed at once.

        Returns:
            Waveforms of shape [B, S] on the CPU, float32.

        Raises:
            MusiccmError: For empty prompts, a step count off the grid, guidance on a student or another duration.
        """
        texts = _check_prompts(prompts)
        if duration_s is not None and not math.isclose(duration_s, self.duration_s, abs_tol=1e-3):
            raise MusiccmError(f"duration: this model makes clips of {self.duration_s:g} s, found {duration_s:g} s; "
                               "leave the duration out")
        # One text at a time: a batch is padded to its longest, which alters the last bits.
        cond_BD = torch.cat([self.conditioner.text([text]) for text in texts])
        seeds = sample_seeds(seed, len(texts))
        clips = []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            z = self.latents(cond_BD[part], seeds[part], steps, guidance_scale=guidance_scale, gamma=gamma)
            clips.append(self.codec.decode(z).float().cpu())
        return torch.cat(clips)

    @torch.no_grad()
    def latents(
        self,
        cond_BD: Tensor,
        seeds: Sequence[int],
        steps: int | None = None,
        *,
        guidance_scale: float | None = None,
        gamma: float | None = None,
    ) -> Tensor:
        """Sample normalised latents.

        Args:
            cond_BD: Condition embeddings.
            seeds: One a sample.
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            gamma: See `__call__`.

        Returns:
            z_BCTF.

        Raises:
            MusiccmError: As `__call__`.
        """
        noise = sample_noise(seeds, self.latent_shape).to(self.device)
        if self.is_student:
            refuse_guidance(guidance_scale)
            timesteps = sampling_timesteps(STUDENT_STEPS if steps is None else steps, self.grid)
            return sample_few_step(
                self.consistency, self.schedule, cond_BD, noise, timesteps,
                float(self.record.get("gamma", 1.0)) if gamma is None else gamma,
                noise_fn=seeded_noise_fn(seeds, self.latent_shape), grid=self.grid,
            )
        if gamma is not None:
            raise MusiccmError("gamma: only a distilled student's sampler has it, and this bundle is a teacher")
        return sample_ddim(
            self.denoiser, self.schedule, cond_BD, self.conditioner.null(len(cond_BD)), noise,
            TEACHER_STEPS if steps is None else steps,
            TEACHER_GUIDANCE_SCALE if guidance_scale is None else guidance_scale,
        )

    def _check_record(self, scheduler: dict[str, Any]) -> None:
        """A student sampled with other settings than it was trained with is silently wrong: refuse it."""
        where = self.bundle.root_of("scheduler") / "scheduler" / "scheduler_config.json"
        for key in ("original_inference_steps", "prediction_type", "timestep_scaling"):
            if key not in scheduler:
                raise MusiccmError(f"{where}: '{key}' is missing; a distilled student's scheduler must state it")
            if self.record.get(key, scheduler[key]) != scheduler[key]:
                raise MusiccmError(f"{where}: {key} is {scheduler[key]!r}, but the student was trained with "
                                   f"{self.record[key]!r} (musiccm.json); restore it")


def sample_seeds(seed: int, count: int) -> list[int]:
    """One seed a sample, from the run's seed and the sample's index alone."""
    digests = (hashlib.blake2b(f"{int(seed)}/{index}".encode(), digest_size=8).digest() for index in range(count))
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def _check_prompts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise MusiccmError("prompts: expected at least one text, found an empty list")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise MusiccmError(f"prompt {index + 1} of {len(texts)}: expected a description such as 'a calm piano "
                               f"melody', found {text!r}")
    return texts


def _check_widths(bundle: Bundle) -> None:
    """The U-Net's channels and condition against VAE and CLAP, before any weights are read."""
    taken, width = bundle.stated("unet", "in_channels", "projection_class_embeddings_input_dim")
    (raw,), (embedded,) = bundle.stated("vae", "latent_channels"), bundle.stated("text_encoder", "projection_dim")
    given = raw * bundle.latent_patch**2
    if taken != given:
        raise MusiccmError(f"{bundle.path}: unet takes {taken} channels, vae gives {given} (latent_patch "
                           f"{bundle.latent_patch}); the two are from different models")
    if width != embedded:
        raise MusiccmError(f"{bundle.path}: unet takes a condition of width {width}, text_encoder gives "
                           f"{embedded}; the two are from different models")
