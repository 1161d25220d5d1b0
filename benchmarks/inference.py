"""Seconds and memory from text to sound: the pipeline in 4 and 1 steps against the teacher as diffusers runs it.

The teacher is diffusers' own `MusicLDMPipeline`, all of 50 guided DDIM steps, then VAE decoder and HiFi-GAN; on a GPU
in float16, as its documentation has it. It is measured on the given bundle and on one of the released size. Weights
are random where there are none (the full size, a fast decoder that the bundle lacks, the student), for they do not
alter the time; a fast decoder has the size that `experiments/stages/decoder.yaml` trains, at full size its defaults.

Three things are fitted to the pipeline of diffusers so that it runs at all, none of which makes it slower: its text
tower hands out the tensor that it expects (transformers 5 wraps it); the empty text is padded to the tokenizer's
length, not to CLAP's width; the VAE is called through the codec, which unfolds latents and mel where a bundle folds
them.

Each candidate lives in a process of its own, which tells its peak memory; the processes take turns. Every clip has a
new text, so that no embedding is remembered. At full size the teacher is timed once, whole; `n` counts our calls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, MusicLDMPipeline
from torch import Tensor, nn

from musiccm.bounds import Bucket
from musiccm.commands._timing import now, peak_mib, row
from musiccm.config import load_experiment
from musiccm.device import choose_device
from musiccm.export import StudentInfo, student_scheduler
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.files import PARTS, save_part
from musiccm.models.fast_decoder import FastDecoder
from musiccm.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
TEACHER_STEPS, GUIDANCE_SCALE, STEPS = 50, 3.0, (4, 1)
#: The paper's clip costs 2.19 s with 50 teacher steps, 0.37 s with 4 and 0.23 s with 1 (arXiv 2404.13358, table 1).
FAST = {4: 20.0, 1: 50.0}
TARGETS = {"original": {4: 2.19 / 0.37, 1: 2.19 / 0.23}, "fast": FAST, "half": FAST, "recorded": {4: 150.0, 1: 300.0}}
#: At full size, 4 steps, fast decoder: seconds of one clip on each kind of device, and on a CPU in bf16; of a minute of
#: music.
CLIP_S, HALF_CLIP_S, MINUTE_S = {"cpu": 6.0, "cuda": 0.013}, 2.0, {"cuda": 0.025}
#: Timed calls of (ours, the teacher).
REPEATS = {"given size": (5, 3), "full size": (3, 1)}
BATCH = 8
TEXT = "a calm piano melody over soft strings, {} bpm"
PARTS_OF_A_CLIP = ("text", "sampler", "decode")
#: Sides that are no decoder's.
SAID = {"recorded": "fast decoder, one recorded call", "half": "fast decoder, bf16 (--half)"}


class Clock:
    """Seconds of the parts of a call, by standing before the functions that make them."""

    def __init__(self, *functions: tuple[str, Any, str]) -> None:
        self.seconds: dict[str, float] = {}
        for part, owner, name in functions:
            setattr(owner, name, partial(self._timed, part, getattr(owner, name)))

    def _timed(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = now()
        result = function(*args, **kwargs)
        self.seconds[part] = self.seconds.get(part, 0.0) + now() - start
        return result

    def parts(self, make: Callable[[], Any]) -> dict[str, float]:
        """Seconds of a call, in all and by part; the sampler's are what text and decoding leave."""
        self.seconds = {}
        start = now()
        make()
        total = now() - start
        named = {part: self.seconds.get(part, 0.0) for part in ("text", "decode")}
        return {"total": total, **named, "sampler": total - sum(named.values())}


class CodecAsVae(nn.Module):
    """The codec's VAE as diffusers' pipeline asks for it."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec
        self.config = SimpleNamespace(scaling_factor=1.0, block_out_channels=codec.vae.config.block_out_channels)
        self.dtype, self.device = codec.vae.dtype, codec.vae.device

    def decode(self, z_BCTF: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.codec.decode_mel(z_BCTF).unsqueeze(1))


class FittedPipeline(MusicLDMPipeline):
    """See the file's head."""

    def _encode_prompt(self, prompt, device, *args, **kwargs):
        null = self.tokenizer([""] * len(prompt), padding="max_length", truncation=True, return_tensors="pt",
                              max_length=self.tokenizer.model_max_length).to(device)
        kwargs["negative_prompt_embeds"] = self.text_encoder.get_text_features(**null)
        return super()._encode_prompt(prompt, device, *args, **kwargs)


class Teacher:
    """The baseline."""

    def __init__(self, folder: str, device: str) -> None:
        bundle = Bundle.from_pretrained(folder)
        clap, vae = bundle.clap, CodecAsVae(bundle.codec("none"))
        features = clap.get_text_features
        clap.get_text_features = lambda *args, **kwargs: features(*args, **kwargs).pooler_output
        parts = {name: bundle.part(name) for name in ("tokenizer", "feature_extractor", "unet", "vocoder")}
        scheduler = DDIMScheduler.from_config(bundle.scheduler_config)
        self.pipe = FittedPipeline(vae=vae, text_encoder=clap, scheduler=scheduler, **parts)
        self.pipe.vae_scale_factor = vae.codec.downsampling
        self.pipe.to(torch.float16 if device == "cuda" else torch.float32).to(device)
        self.duration_s = bundle.latent_shape()[1] * vae.codec.downsampling * bundle.mel.hop_length / (
            bundle.mel.sample_rate_hz)
        self.clock = Clock(("text", self.pipe, "_encode_prompt"), ("decode", vae, "decode"),
                           ("decode", self.pipe, "mel_spectrogram_to_waveform"))

    def make(self, texts: list[str], steps: int, seconds: float | None) -> None:
        self.pipe(texts, self.duration_s, steps, GUIDANCE_SCALE)


class Ours:
    """The pipeline, accelerated; on a GPU compiled and in bf16, on a CPU in bf16 where that is asked for."""

    def __init__(self, folder: str, device: str, decoder: str, half: bool = False) -> None:
        self.pipe = Pipeline.from_pretrained(folder, decoder=decoder).to(device)
        if device == "cuda":
            self.pipe.accelerate(half=True, backend="inductor")
        else:
            self.pipe.accelerate(half)
        self.clock = Clock(("text", self.pipe.conditioner, "prompts"), ("decode", self.pipe.codec, "decode"))

    def make(self, texts: list[str], steps: int, seconds: float | None) -> None:
        if seconds is None:
            self.pipe(texts, steps, batch_size=len(texts))
        else:
            self.pipe.compose(texts[0], seconds, steps, batch_size=16)


class Recorded(Ours):
    """The same with the fast decoder, clips recorded as one call each (`Pipeline.warm_up`), which has no parts."""

    def __init__(self, folder: str, device: str) -> None:
        super().__init__(folder, device, "fast")
        shapes = [*(Bucket(1, steps) for steps in STEPS), Bucket(BATCH, STEPS[0])]
        self.pipe.warm_up(shapes, [TEXT.format(0)], record=True)


class Candidate:
    """One side, asked call by call; every clip has a text of its own.

    Args:
        folder: The bundle.
        device: Where it computes.
        decoder: None for the teacher; `fast`, `original`, `half` (the fast one, and all in bf16), or `recorded`.
    """

    def __init__(self, folder: str, device: str, decoder: str | None) -> None:
        self.side: Any
        if decoder is None:
            self.side = Teacher(folder, device)
        else:
            half = decoder == "half"
            self.side = (Recorded(folder, device) if decoder == "recorded"
                         else Ours(folder, device, "fast" if half else decoder, half))
        self.device, self.made = device, 0
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # what loading took is not what making takes

    def ask(self, steps: int, clips: int = 1, seconds: float | None = None) -> dict[str, float]:
        """Make some clips; seconds of the parts, and MiB that were in use at most until then."""
        self.made += clips
        texts = [TEXT.format(self.made + i) for i in range(clips)]
        spent = self.side.clock.parts(lambda: self.side.make(texts, steps, seconds))
        return {**spent, "peak": peak_mib(self.device)}

    def close(self) -> None:
        pass


class Apart:
    """A candidate in a process of its own, asked through its standard input and output."""

    def __init__(self, *args: str | None) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps(args)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a candidate ended with {self.process.wait()}; its last words are above")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def serve(args: list[Any]) -> None:
    """Answer requests, a line of JSON each; whatever libraries print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    candidate = Candidate(*args)
    for line in sys.stdin:
        print(json.dumps(candidate.ask(**json.loads(line))), file=answers, flush=True)


def write_student(teacher: str | Path, folder: Path, decoder: FastDecoder) -> Path:
    """A student with the teacher's network, its other parts and a fast decoder."""
    bundle = Bundle.from_pretrained(teacher)
    folder.mkdir(parents=True)
    shutil.copy(bundle.path / "model_index.json", folder)
    save_settings(folder, **{k: v for k, v in bundle.settings.items() if k not in ("base", "distillation")})
    for name in (name for name in PARTS if bundle.has(name) and name != "scheduler"):
        shutil.copytree(bundle.root_of(name) / name, folder / name)  # a bundle's links may not lead out of it
    info = StudentInfo("v_prediction", GUIDANCE_SCALE)
    save_part(folder, "scheduler", student_scheduler(bundle.scheduler_config, info))
    if not bundle.has("decoder"):
        save_part(folder, "decoder", decoder)
    return folder


def small_decoder(teacher: str) -> FastDecoder:
    """With the shape of the decoder stage, and the channels, bins and hop of a bundle's latents."""
    bundle = Bundle.from_pretrained(teacher)
    shape = load_experiment(ROOT / "experiments/stages/decoder.yaml")["model"]["init_args"]["decoder"]
    return FastDecoder({**shape, **bundle.codec("none").raw_latents()})


def compare(size: str, teacher: str, student: str, device: str, kind: Callable[..., Any] = Apart) -> list[dict]:
    """Rows of one size."""
    sides = {"teacher": kind(teacher, device, None), "fast": kind(student, device, "fast"),
             "original": kind(student, device, "original")}
    extra = "recorded" if device == "cuda" else "half"
    sides[extra] = kind(student, device, extra)
    try:
        return measure(size, sides, device)
    finally:
        for side in sides.values():
            side.close()


def measure(size: str, sides: dict[str, Any], device: str) -> list[dict]:
    """The candidates of one size, taking turns."""
    spent: dict[tuple[str, int], list[dict[str, float]]] = {}
    cases = [("teacher", TEACHER_STEPS), *[(name, steps) for name in sides if name != "teacher" for steps in STEPS]]
    best = "recorded" if "recorded" in sides else "fast"
    for name, side in sides.items():
        for _ in range(1 if name == "teacher" else 3):  # every network, and what CUDA graphs record at a second call
            side.ask(steps=1)
    ours, theirs = REPEATS[size]
    for repeat in range(max(ours, theirs)):
        for name, steps in cases:
            if repeat < (theirs if name == "teacher" else ours):
                print(f"{size}: {name}, {steps} steps, {repeat + 1} of {theirs if name == 'teacher' else ours}",
                      file=sys.stderr, flush=True)
                spent.setdefault((name, steps), []).append(sides[name].ask(steps=steps))

    def of(name: str, steps: int, part: str = "total") -> list[float]:
        return [one[part] for one in spent[name, steps]]

    rows, full = [], size == "full size"
    for name, steps in cases[1:]:
        target = TARGETS[name][steps] if full or name == "original" else None
        said = SAID.get(name, f"{name} decoder")
        rows.append(row(f"{size}: {steps} step(s), {said}, text to sound, against the teacher of diffusers",
                        of(name, steps), of("teacher", TEACHER_STEPS), "s", target))
    for name in (name for name in sides if name not in ("teacher", "recorded")):  # a recorded call has no parts
        said = SAID.get(name, f"{name} decoder")
        for part in PARTS_OF_A_CLIP:
            rows.append(row(f"{size}: of that {part}, 4 steps, {said}", of(name, 4, part),
                            of("teacher", TEACHER_STEPS, part), "s"))
        rows.append(row(f"{size}: peak memory, {said}", [max(of(name, 4, "peak"))],
                        [max(of("teacher", TEACHER_STEPS, "peak"))], "MiB"))
    if full:
        rows.append(row(f"{size}: 4 steps, fast decoder, a clip against a bound", of(best, 4), [CLIP_S[device]], "s",
                        1.0))
        if "half" in sides:
            rows.append(row(f"{size}: 4 steps, {SAID['half']}, a clip against a bound", of("half", 4), [HALF_CLIP_S],
                            "s", 1.0))
    wanted = {f"{size}: batch {BATCH}, 4 steps, fast decoder, seconds a clip against batch 1":
              ({"clips": BATCH}, BATCH, of(best, 4), None)}
    if full and device in MINUTE_S:
        wanted[f"{size}: one minute of music, 4 steps, fast decoder, against a bound"] = (
            {"seconds": 60.0}, 1, [MINUTE_S[device]], 1.0)
    for case, (request, share, baseline, target) in wanted.items():
        sides[best].ask(steps=4, **request)  # warm-up, of another shape
        made = [sides[best].ask(steps=4, **request)["total"] / share for _ in range(ours)]
        rows.append(row(case, made, baseline, "s", target))
    return rows


def run(bundle: str) -> list[dict]:
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as scratch:
        student = write_student(bundle, Path(scratch, "student"), small_decoder(bundle))
        rows = compare("given size", bundle, str(student), device)
        full = Path(scratch, "full")
        subprocess.run([sys.executable, str(ROOT / "tests/full_size.py"), "--out", str(full)], check=True)
        student = write_student(full, Path(scratch, "full-student"), FastDecoder({}))
        return rows + compare("full size", str(full), str(student), device)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
