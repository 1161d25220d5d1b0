"""Seconds from text to sound: the student in 1 and 4 steps against its teacher in 50 guided ones.

The student has its teacher's network, so the bundle's own U-Net stands for both: weights do not alter the time. Both
sides share text encoder and decoders, the parts of which are shown alone too.
"""

from __future__ import annotations

from functools import partial

import torch

from musiccm.callbacks.contenders import Contender, initial_noise, student_contender, teacher_contender
from musiccm.commands._timing import now, row
from musiccm.diffusion import NoiseSchedule, student_grid
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency, Denoiser

TEACHER_STEPS, GUIDANCE_SCALE = 50, 3.0
#: The paper's clip costs 2.19 s with 50 teacher steps, 0.37 s with 4 and 0.23 s with 1 (arXiv 2404.13358, table 1).
PAPER_RATIO = {1: 2.19 / 0.23, 4: 2.19 / 0.37}
REPEATS = {1: 5, 8: 3}
PARTS = ("text", "sampler", "decode")


def contenders(bundle: Bundle, device: str) -> dict[str, Contender]:
    schedule = NoiseSchedule.from_config(bundle.scheduler_config)
    unet = bundle.unet.to(device)
    conditioner, codec, shape = bundle.conditioner().to(device), bundle.codec().to(device), bundle.latent_shape()
    teacher = Denoiser(unet, schedule, bundle.scheduler_config["prediction_type"])
    f = Consistency(Denoiser(unet, schedule, "v_prediction"))
    grid = student_grid(schedule.num_train_timesteps)
    student = partial(student_contender, f, schedule, conditioner, codec, shape, grid=grid)
    return {
        "teacher": teacher_contender(teacher, schedule, conditioner, codec, shape, TEACHER_STEPS, GUIDANCE_SCALE),
        **{f"student@{steps}": student(steps) for steps in (1, 4)},
    }


@torch.inference_mode()
def generate(contender: Contender, captions: list[str], seed: int, device: str) -> dict[str, float]:
    """Make one batch; seconds of each part."""
    seeds = list(range(seed, seed + len(captions)))
    clock = [now()]
    cond_BD = contender.encode(captions)
    clock.append(now())
    z = contender.sample(cond_BD, initial_noise(seeds, contender.latent_shape, device), seeds)
    clock.append(now())
    contender.decode(z)
    clock.append(now())
    return {name: b - a for name, a, b in zip(PARTS, clock, clock[1:], strict=False)}


def run(bundle: str) -> list[dict]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides = contenders(Bundle.from_pretrained(bundle), device)
    rows = []
    for batch, repeats in REPEATS.items():
        captions = ["a calm piano melody over soft strings, 80 bpm"] * batch
        spent: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for name in ("student@1", "student@4"):
            generate(sides[name], captions, 0, device)  # warm-up; it passes every network
        for repeat in range(repeats):
            for name, side in sides.items():
                spent[name].append(generate(side, captions, repeat, device))
        totals = {name: [sum(times.values()) for times in all_times] for name, all_times in spent.items()}
        for steps, ratio in PAPER_RATIO.items():
            case = f"batch {batch}: student@{steps} against teacher@{TEACHER_STEPS}, text to sound"
            rows.append(row(case, totals[f"student@{steps}"], totals["teacher"], "s", ratio if batch == 1 else None))
        for part in PARTS:
            ours, theirs = ([times[part] for times in spent[name]] for name in ("student@4", "teacher"))
            rows.append(row(f"batch {batch}: of these, {part} (student@4)", ours, theirs, "s"))
    return rows
