"""Seconds of a training step: distillation alone, with the adversarial term, and a straightforward step beside them.

The straightforward step decodes whole clips and makes every call by itself. It learns from the same losses. Then steps
and clips a second, and operations a second against what the card could do at most. On a GPU these are of compiled
networks under bf16, of the bundle at two batches and of MusicLDM's size, with the share of the time in which a kernel
runs; on a CPU of the steps timed before.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from musiccm.audio.windows import keyed_generator
from musiccm.commands._timing import alternating, now, row
from musiccm.commands._utilisation import Work, covered, peak_of
from musiccm.commands.bench import load
from musiccm.data.batch import LatentBatch
from musiccm.device import choose_device, sent
from musiccm.diffusion import guide, jump_to_target
from musiccm.losses import generator_loss
from musiccm.models.ema import Ema
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.parallel import normal_like
from musiccm.systems.settings import Adversarial, Distillation, Optimization

BATCH, WARMUP, STEPS, ROUNDS = 8, 1, 2, 3
#: Share of the clip that the discriminator sees.
CROP = 1 / 8
#: The adversarial step may take this many times the step without it.
BOUND = 1.8
#: On a GPU: batches of the bundle and of the released size, steps before and while it is timed, what compiles.
GPU_BATCHES, FULL_BATCH, GPU_STEPS, BACKEND = (16, 256), 8, (20, 50), "inductor"
#: What is asked for there: steps a second and share of the time busy by batch of musiccm-tiny, share of the peak at
#: the released size.
RATES, BUSY, UTILISATION = {16: 40.0}, {256: 0.9}, 0.35
#: Batches whose noise is drawn alone.
DRAWN = (16, 256)
#: Latent frames that the discriminator sees at the released size, of 256, and decoded on either side.
FULL_CROP, FULL_CONTEXT = 48, 2
#: What rows of the released size are called.
FULL_SIZE = "MusicLDM's size, compiled, {}"


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

    def guided_teacher(self, cond_BD: Tensor, held: Any = None) -> Any:
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


class Counted(pl.Callback):
    """Operations of the last step; what was compiled is not seen."""

    operations = 0

    def on_train_batch_start(self, *args) -> None:
        # torch has no formula for the fused attention of CPUs
        self._work, self._attention = Work(), sdpa_kernel(SDPBackend.MATH)
        self._attention.__enter__()
        self._work.__enter__()

    def on_train_batch_end(self, *args) -> None:
        self._work.__exit__(None, None, None)
        self._attention.__exit__(None, None, None)
        self.operations = self._work.operations


class Profiled(pl.Callback):
    """Seconds in which at least one kernel ran, a step, of all steps but the first `WARMUP`."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, number: int) -> None:
        if number == WARMUP:
            now()
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.__enter__()

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        now()
        self._profile.__exit__(None, None, None)
        kernels = [(event.time_range.start, event.time_range.end) for event in self._profile.events()
                   if event.device_type == DeviceType.CUDA]
        self.seconds = covered(kernels) / 1e6 / (trainer.max_steps - WARMUP)


def made(system: type[MusicCM], bundle: str, adversarial: Adversarial, **optimization: Any) -> MusicCM:
    return system(bundle, Distillation(), adversarial, Optimization(lr=1e-6, **optimization))


def systems(bundle: str) -> dict[str, MusicCM]:
    alone, whole = Adversarial(weight=0.0), Adversarial(weight=1.0)
    frames = MusicCM(bundle, adversarial=alone).bundle.latent_shape()[1]
    crop = Adversarial(weight=1.0, crop_frames=max(1, round(frames * CROP)))
    return {
        "distillation alone": made(MusicCM, bundle, alone),
        "adversarial, on a crop": made(MusicCM, bundle, crop),
        "adversarial, on whole clips": made(MusicCM, bundle, whole),
        "adversarial, straightforward": made(Straightforward, bundle, whole),
        "distillation alone, straightforward": made(Straightforward, bundle, alone),
        "on a crop, gradient_checkpointing": made(MusicCM, bundle, crop, gradient_checkpointing=True),
        "on a crop, channels_last": made(MusicCM, bundle, crop, channels_last=True),
    }


def batches(system: MusicCM, size: int | None = None, count: int = 1) -> list[LatentBatch]:
    """Noise of the latents' shape, where the system is: the time does not depend on the values."""
    size = size or BATCH
    generator = torch.Generator().manual_seed(0)
    width, latents = system.conditioner.width, torch.randn(size, *system.bundle.latent_shape(), generator=generator)
    cond = torch.nn.functional.normalize(torch.randn(size, width, generator=generator), dim=-1)
    raw = system.codec.denormalise(latents.to(system.device))
    cond = cond.to(system.device)
    return [LatentBatch(raw, cond, cond, [str(i) for i in range(size)], [""] * size)] * count


def fit(system: MusicCM, size: int, steps: int, callback: pl.Callback) -> None:
    """Real steps on batches of the host, as a loader has them."""
    on_gpu = torch.cuda.is_available()
    precision: Any = "bf16-mixed" if on_gpu else "32-true"
    trainer = pl.Trainer(max_steps=steps, devices=1, logger=False, enable_checkpointing=False, callbacks=callback,
                         enable_progress_bar=False, enable_model_summary=False, precision=precision)
    loader = torch.utils.data.DataLoader(batches(system.to("cpu"), size, steps), batch_size=None, pin_memory=on_gpu)
    trainer.fit(system, loader)


def step_seconds(system: MusicCM, size: int, warmup: int, steps: int) -> list[float]:
    clock = Clock()
    fit(system, size, warmup + steps, clock)
    return clock.times[warmup:]


def clip_operations(system: MusicCM) -> int:
    """Operations of a real step, of one clip: every network's passes, forth and back, and the text tower's in none.

    Args:
        system: Not compiled.
    """
    counted = Counted()
    fit(system, 1, 2, counted)  # the first step asks the text tower for the empty prompt
    return counted.operations


def rate_rows(name: str, size: int, seconds: Sequence[float], clip: int, share: float | None = None) -> list[dict]:
    """Steps, clips and operations a second, the last against the card's peak.

    Args:
        name: Of the step.
        size: Of the batch.
        seconds: Of steps.
        clip: Operations of one clip.
        share: What of the peak is asked for.
    """
    rates, case = [1 / second for second in seconds], f"{name}, batch {size}"
    done = [rate * size * clip / 1e12 for rate in rates]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    peak = None if card is None else peak_of(card)
    of = "" if card is None else f", peak of {card} unknown" if peak is None else f", against the peak of {card}"
    return [row(f"{case}: steps", rates, [], "1/s"), row(f"{case}: clips", [rate * size for rate in rates], [], "1/s"),
            row(f"{case}: operations{of}", done, [] if peak is None else [peak / 1e12], "TFLOPS",
                None if peak is None else share, lower_is_better=False)]


def busy_share(system: MusicCM, size: int, seconds: Sequence[float]) -> float:
    """Share of steps' time in which a kernel runs; the profiler's own time, which lengthens steps, is left out."""
    profiled = Profiled()
    fit(system, size, WARMUP + 10, profiled)
    return profiled.seconds / statistics.median(seconds)


def draw_rows(system: MusicCM, device: torch.device) -> list[dict]:
    """Noise of a batch as the step draws it, on the device, against a draw of the host that is sent there."""
    rows, generator = [], keyed_generator(0, "bench")
    for size in DRAWN:
        like = torch.empty(size, *system.bundle.latent_shape(), device=device)
        times = alternating({"host": lambda like=like: sent(torch.randn(like.shape, generator=generator), device),
                             "device": lambda like=like: normal_like(like, generator)}, repeats=21, warmup=3)
        rows.append(row(f"noise of {size} clips drawn by counter where it is needed, against by the host",
                        *([1e3 * second for second in times[side]] for side in ("device", "host")), "ms"))
    return rows


def gpu_rows(bundle: str, device: str) -> list[dict]:
    """Rates of compiled networks, of the bundle and of the released size."""
    rows = []
    alone = Adversarial(weight=0.0)
    clip = clip_operations(made(MusicCM, bundle, alone))
    for size in GPU_BATCHES:
        system = made(MusicCM, bundle, alone, compile=BACKEND)
        seconds = step_seconds(system, size, *GPU_STEPS)
        found = rate_rows("compiled, distillation alone", size, seconds, clip)
        if size in RATES:
            found[0] = row(f"{found[0]['case']}, against a goal", [1 / second for second in seconds], [RATES[size]],
                           "1/s", 1.0, lower_is_better=False)
        rows += found
        if device == "cuda":
            goal = [BUSY[size]] if size in BUSY else []
            rows.append(row(f"compiled, distillation alone, batch {size}: share of the time busy",
                            [busy_share(system, size, seconds)], goal, "of 1", 1.0 if goal else None,
                            lower_is_better=False))
    with tempfile.TemporaryDirectory() as folder:
        path, crop = full_size(Path(folder), bundle), Adversarial(crop_frames=FULL_CROP, crop_context=FULL_CONTEXT)
        sides = {}
        for name, adversarial in (("distillation alone", alone), ("adversarial, on a crop", crop)):
            clip = clip_operations(made(MusicCM, path, adversarial))
            compiled = made(MusicCM, path, adversarial, compile=BACKEND)
            sides[name] = step_seconds(compiled, FULL_BATCH, *GPU_STEPS)
            rows += rate_rows(FULL_SIZE.format(name), FULL_BATCH, sides[name], clip, UTILISATION)
    against = FULL_SIZE.format(f"adversarial, on a crop, against distillation alone, batch {FULL_BATCH}")
    return [*rows, row(against, sides["adversarial, on a crop"], sides["distillation alone"], "s", 1 / BOUND)]


def full_size(folder: Path, bundle: str) -> str:
    """A bundle of the released shapes with random weights."""
    module: Any = load(Path(__file__).with_name("full_size.py"))
    return str(module.write_bundle(folder / "full", bundle))


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
                seconds.setdefault(name, []).extend(step_seconds(system, BATCH, WARMUP, STEPS))
        alone, device = pieces(sides["adversarial, on a crop"]), choose_device("auto")
        clips = {name: clip_operations(sides[name]) for name in ("distillation alone", "adversarial, on a crop")}
        rates = gpu_rows(bundle, device) if device != "cpu" else [
            one for name, clip in clips.items() for one in rate_rows(name, BATCH, seconds[name], clip)]
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
    first, second = clips.values()
    rows.append(row("adversarial, on a crop, against distillation alone, counted", [second / 1e9], [first / 1e9],
                    "GFLOP a clip", 1 / BOUND))
    total = sum(alone.values())
    shares = {name: part / total for name, part in alone.items()}
    pieces_rows = [row(f"share of the pieces: {name}", [share], [], "of 1") for name, share in shares.items()]
    return rows + rates + draw_rows(sides["distillation alone"], torch.device(device)) + pieces_rows
