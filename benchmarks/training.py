"""Samples a second of the distillation step: alone, with the adversarial term on a crop, and on whole clips.

The baseline is the paper's step, which decodes and judges whole clips. Below, the pieces of a step, each alone.
"""

from __future__ import annotations

import logging
import statistics
import warnings

import pytorch_lightning as pl
import torch

from musiccm.audio.windows import keyed_generator
from musiccm.commands._timing import alternating, now, row
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import jump_to_target
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization

BATCH, WARMUP, STEPS, ROUNDS = 16, 1, 3, 2
#: Share of the clip that is judged: a quarter.
CROP = 4


class Clock(pl.Callback):
    """Seconds of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args) -> None:
        self._start = now()

    def on_train_batch_end(self, *args) -> None:
        self.times.append(now() - self._start)


def systems(bundle: str) -> dict[str, MusicCM]:
    frames = MusicCM(bundle, adversarial=Adversarial(weight=0.0)).bundle.latent_shape()[1]
    settings = {
        "distillation alone": Adversarial(weight=0.0),
        "adversarial on a crop": Adversarial(weight=1.0, crop_frames=max(1, frames // CROP)),
        "adversarial on whole clips": Adversarial(weight=1.0),
    }
    return {
        name: MusicCM(bundle, Distillation(), adversarial, Optimization(lr=1e-6))
        for name, adversarial in settings.items()
    }


def batches(system: MusicCM) -> list[LatentBatch]:
    """Noise of the latents' shape: the time does not depend on the values."""
    generator = torch.Generator().manual_seed(0)
    width, latents = system.conditioner.width, torch.randn(BATCH, *system.bundle.latent_shape(), generator=generator)
    cond = torch.nn.functional.normalize(torch.randn(BATCH, width, generator=generator), dim=-1)
    raw = system.codec.denormalise(latents)
    return [LatentBatch(raw, cond, cond, [str(i) for i in range(BATCH)], [""] * BATCH)] * (WARMUP + STEPS)


def step_seconds(system: MusicCM) -> list[float]:
    clock = Clock()
    trainer = pl.Trainer(max_steps=WARMUP + STEPS, devices=1, logger=False, enable_checkpointing=False, callbacks=clock,
                         enable_progress_bar=False, enable_model_summary=False, precision="32-true")
    loader = torch.utils.data.DataLoader(batches(system), batch_size=None)
    trainer.fit(system, loader)
    return clock.times[WARMUP:]


def pieces(system: MusicCM) -> dict[str, float]:
    """Median seconds of the pieces of a step, each run alone on a batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    system = system.to(device)
    batch = batches(system)[0].to(device)
    z, cond_BD = system.codec.normalise(batch.latents_BCTF), batch.text_BD
    t_B = system.grid[torch.arange(BATCH) % len(system.grid)].to(device)
    crop = system._crop(z.shape[2], keyed_generator(0, "bench"))

    def teacher() -> None:
        with torch.no_grad():
            jump_to_target(system._guided_teacher(cond_BD), system.schedule, z, t_B, 20, 1, "ddim")

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

    functions = {"teacher, one guided jump": teacher, "target, no gradient": target,
                 "student, forward and backward": student, "decoder and features of a crop, to the latents": decoder}
    return {name: statistics.median(times) for name, times in alternating(functions, repeats=3).items()}


def run(bundle: str) -> list[dict]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rates: dict[str, list[float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = systems(bundle)
        for _ in range(ROUNDS):
            for name, system in sides.items():
                rates.setdefault(name, []).extend(BATCH / seconds for seconds in step_seconds(system))
        alone = pieces(sides["adversarial on a crop"])
    whole = rates.pop("adversarial on whole clips")
    rows = [row(f"{name}, against whole clips, batch {BATCH}", rate, whole, "samples/s", None, lower_is_better=False)
            for name, rate in rates.items()]
    total = sum(alone.values())
    shares = {name: seconds / total for name, seconds in alone.items()}
    return rows + [row(f"share of the pieces: {name}", [share], [], "of 1") for name, share in shares.items()]
