"""Seconds of a training step: distillation alone, with the adversarial term, and a straightforward step beside them.

The straightforward step decodes whole clips for the discriminator and makes every call by itself. It learns from the
same losses.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from musiccm.audio.windows import keyed_generator
from musiccm.commands._timing import alternating, now, row
from musiccm.data.batch import LatentBatch
from musiccm.device import choose_device
from musiccm.diffusion import guide, jump_to_target
from musiccm.losses import generator_loss
from musiccm.models.ema import Ema
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization

BATCH, WARMUP, STEPS, ROUNDS = 8, 1, 2, 3
#: Share of the clip that the discriminator sees.
CROP = 1 / 8
#: The adversarial step may take this many times the step without it.
BOUND = 1.8


class PlainEma(Ema):
    """An average that is updated one parameter after the other."""

    @torch.no_grad()
    def update(self, source: torch.nn.Module) -> None:
        for mine, theirs in zip(self.module.parameters(), source.parameters(), strict=True):
            mine.mul_(self.decay).add_(theirs, alpha=1.0 - self.decay)


class Straightforward(MusicCM):
    """The step as one would write it down: a call for each thing, the discriminator's features made anew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.student_ema_target = PlainEma(self.student, self.distillation.target_ema_decay)
        self.student_ema_slow = PlainEma(self.student, self.distillation.eval_ema_decay)

    def guided_teacher(self, cond_BD: Tensor) -> Any:
        null_BD = self.conditioner.null(len(cond_BD))
        return lambda z, t: guide(self.teacher(z, t, cond_BD), self.teacher(z, t, null_BD), self.guidance_scale)

    def _losses(self, z0: Tensor, x0_pred: Tensor, text_BD: Tensor, generator: torch.Generator) -> dict[str, Any]:
        network, crop = self.frozen["features"], self._crop(z0.shape[2], generator)
        with torch.no_grad():
            audio_BD = network.embed(self.codec.decode_mel(z0, crop))
            real, fake = (network(self.codec.decode_mel(z, crop)) for z in (z0, x0_pred))
        cond_BD = torch.cat([text_BD, audio_BD], dim=1)
        loss_g, _ = generator_loss(self.discriminator, network(self.codec.decode_mel(x0_pred, crop)), cond_BD)
        return {"loss_g": loss_g, "real": real, "fake": fake, "cond": cond_BD}


class Clock(pl.Callback):
    """Seconds of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args) -> None:
        self._start = now()

    def on_train_batch_end(self, *args) -> None:
        self.times.append(now() - self._start)


def systems(bundle: str) -> dict[str, MusicCM]:
    alone, whole = Adversarial(weight=0.0), Adversarial(weight=1.0)
    frames = MusicCM(bundle, adversarial=alone).bundle.latent_shape()[1]
    crop = Adversarial(weight=1.0, crop_frames=max(1, round(frames * CROP)))

    def made(system: type[MusicCM], adversarial: Adversarial, **optimization: Any) -> MusicCM:
        return system(bundle, Distillation(), adversarial, Optimization(lr=1e-6, **optimization))

    return {
        "distillation alone": made(MusicCM, alone),
        "adversarial, on a crop": made(MusicCM, crop),
        "adversarial, on whole clips": made(MusicCM, whole),
        "adversarial, straightforward": made(Straightforward, whole),
        "distillation alone, straightforward": made(Straightforward, alone),
        "on a crop, gradient_checkpointing": made(MusicCM, crop, gradient_checkpointing=True),
        "on a crop, channels_last": made(MusicCM, crop, channels_last=True),
    }


def batches(system: MusicCM, size: int | None = None) -> list[LatentBatch]:
    """Noise of the latents' shape, where the system is: the time does not depend on the values."""
    size = size or BATCH
    generator = torch.Generator().manual_seed(0)
    width, latents = system.conditioner.width, torch.randn(size, *system.bundle.latent_shape(), generator=generator)
    cond = torch.nn.functional.normalize(torch.randn(size, width, generator=generator), dim=-1)
    raw = system.codec.denormalise(latents.to(system.device))
    cond = cond.to(system.device)
    return [LatentBatch(raw, cond, cond, [str(i) for i in range(size)], [""] * size)] * (WARMUP + STEPS)


def step_seconds(system: MusicCM) -> list[float]:
    clock = Clock()
    precision: Any = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    trainer = pl.Trainer(max_steps=WARMUP + STEPS, devices=1, logger=False, enable_checkpointing=False, callbacks=clock,
                         enable_progress_bar=False, enable_model_summary=False, precision=precision)
    loader = torch.utils.data.DataLoader(batches(system), batch_size=None)
    trainer.fit(system, loader)
    return clock.times[WARMUP:]


def pieces(system: MusicCM) -> dict[str, float]:
    """Median seconds of the pieces of a step, each run alone on a batch."""
    device = choose_device("auto")
    system = system.to(device)
    batch = batches(system)[0]
    z, cond_BD = system.codec.normalise(batch.latents_BCTF), batch.text_BD
    t_B = system.grid[torch.arange(BATCH) % len(system.grid)].to(device)
    crop = system._crop(z.shape[2], keyed_generator(0, "bench"))

    def teacher() -> None:
        with torch.no_grad():
            jump_to_target(system.guided_teacher(cond_BD), system.schedule, z, t_B, 20, 1, "ddim")

    def target() -> None:
        with torch.no_grad():
            system.consistency("target")(z, t_B, cond_BD)

    def student() -> None:
        system.consistency("online")(z, t_B, cond_BD).square().mean().backward()
        system.student.zero_grad(set_to_none=True)

    def decoder() -> None:
        leaf = z.detach().clone().requires_grad_(True)
        features, _ = system.features_of(leaf, crop)
        sum(feature.square().mean() for feature in features).backward()

    def averages() -> None:
        for ema in (system.student_ema_target, system.student_ema_slow):
            ema.update(system.student)

    functions = {"teacher, one guided jump": teacher, "target, no gradient": target,
                 "student, forward and backward": student, "decoder and features of a crop, to the latents": decoder,
                 "both averages": averages}
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):  # as the whole steps there
        return {name: statistics.median(times) for name, times in alternating(functions, repeats=3).items()}


def run(bundle: str) -> list[dict]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seconds: dict[str, list[float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = systems(bundle)
        for _ in range(ROUNDS):
            for name, system in sides.items():
                seconds.setdefault(name, []).extend(step_seconds(system))
        alone = pieces(sides["adversarial, on a crop"])
    distil, crop = seconds["distillation alone"], seconds["adversarial, on a crop"]
    plain = seconds["adversarial, straightforward"]

    def against(ours: str, theirs: list[float], what: str, target: float | None = None) -> dict:
        return row(f"{ours}, against {what}, batch {BATCH}", seconds[ours], theirs, "s", target)

    rows = [
        against("adversarial, on a crop", distil, "distillation alone", 1 / BOUND),
        against("adversarial, straightforward", distil, "distillation alone"),
        against("adversarial, on a crop", plain, "straightforward"),
        against("adversarial, on whole clips", plain, "straightforward"),
        against("distillation alone", seconds["distillation alone, straightforward"], "straightforward"),
        against("on a crop, gradient_checkpointing", crop, "without"),
        against("on a crop, channels_last", crop, "without"),
    ]
    total = sum(alone.values())
    shares = {name: part / total for name, part in alone.items()}
    return rows + [row(f"share of the pieces: {name}", [share], [], "of 1") for name, share in shares.items()]
