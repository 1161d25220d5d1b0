"""A model as one job uses it: its network calls are made by the device's thread, counted, and may be the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from musiccm.long_form import LongMusic, MusicModel, finished
from musiccm.samplers import SamplerSpec, Stepper, prompt_seeds, sample_noise, seeded_noise_fn
from musiccm.serving.device_queue import DeviceQueue
from musiccm.serving.jobs import Job
from musiccm.serving.parts import CODEC, Part


class Unserved(LongMusic):
    """A `MusicModel` with the methods of `LongMusic`.

    Args:
        model: The model.
    """

    def __init__(self, model: MusicModel) -> None:
        self._inner = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class ModelAtWork(Unserved):
    """A `MusicModel` for one job, with all that `LongMusic` makes of one.

    Args:
        model: The model.
        queue: The device's thread.
        job: For whom.
    """

    def __init__(self, model: MusicModel, queue: DeviceQueue, job: Job) -> None:
        super().__init__(model)
        self._queue, self._job = queue, job
        self.codec: Any = Part(model.codec, CODEC, self._queued_part)

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """See `MusicModel.stepper`; the network's calls go through the queue."""
        stepper = self._inner.stepper(steps, guidance_scale, strength=strength, sampler=sampler)
        return replace(stepper, network=self._queued(stepper))

    def _queued_part(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return self._queue.run(self._job, lambda: getattr(self._inner.codec, method)(*args, **options))

    def _queued(self, stepper: Stepper) -> Callable[..., Tensor]:
        network, timesteps = stepper.network, list(stepper.timesteps)

        def queued(z: Tensor, t: Tensor, cond: Any, *more: Tensor, **named: Tensor) -> Tensor:
            latest = float(t.min())  # of a stream, whose calls mix noise levels, the furthest
            self._job.begun(sum(1 for level in timesteps if level >= latest - 1e-6), len(timesteps))
            return self._queue.call(self._job, self._inner, network, z, t, cond, *more, **named)

        return queued

    def clip(
        self,
        text: str,
        steps: int | None,
        seed: int,
        *,
        guidance_scale: float | None,
        sampler: SamplerSpec | None,
        level: str,
    ) -> Tensor:
        """A clip of the trained length, by any sampler: `Pipeline.__call__` with one prompt.

        Args:
            text: What the music should be like.
            steps: Sampling steps.
            seed: Of the noise.
            guidance_scale: See `Pipeline.__call__`.
            sampler: See `Pipeline.__call__`.
            level: See `Pipeline.__call__`.

        Returns:
            Waveform of shape [S] on the CPU, float32.
        """
        model, seeds = self._inner, prompt_seeds(seed, 1)
        if getattr(model, "warmed", False):
            warm: Any = model
            made_BS = self._queue.run(
                self._job, lambda: warm.warm_clips([text], seeds, steps, guidance_scale, sampler))
            if made_BS is not None:
                self._job.made_at_once()
                return finished(made_BS[0].clone(), model.sample_rate_hz, level, repr(text[:60]))
        stepper = self.stepper(steps, guidance_scale, sampler=sampler)
        with torch.inference_mode():
            # a conditioner that draws what it plans is told the seed as well
            drawn = [seeds] if getattr(model.conditioner, "draws", False) else []
            cond = model.conditioner.prompts([text], *drawn)
            noise = sample_noise(seeds, model.latent_shape).to(model.device)
            z = stepper.sample(cond, noise, seeded_noise_fn(seeds, model.latent_shape))
            sound_S = self.codec.decode(z).float().cpu()[0]
        return finished(sound_S.clone(), model.sample_rate_hz, level, repr(text[:60]))


def call_count(stepper: Stepper, windows: int, batch_size: int) -> int:
    """Network calls of a piece.

    Args:
        stepper: The sampler at work.
        windows: Windows of the piece.
        batch_size: Windows a call.

    Returns:
        The number.
    """
    steps: Sequence[float] = stepper.timesteps
    calls = 2 * len(steps) - 1 if stepper.sampler.name == "heun" else len(steps)
    return calls * -(-windows // batch_size)
