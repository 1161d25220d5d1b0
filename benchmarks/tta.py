"""Seconds from text to sound at TANGO's size: one call of a ConsistencyTTA student against 200 guided steps.

Weights are random, for they do not alter the time; shapes are the published ones: the light U-Net (557.1 M parameters,
with the student's guidance branch 559.2), FLAN-T5-large's encoder (341.2), AudioLDM's autoencoder and vocoder (55.4 and
55.3), clips of 10.24 s. The tokenizer is made on the spot, and has about as many tokens a caption.

The baseline is TANGO's own way, by the classes of diffusers and transformers: caption and empty text encoded together,
200 DDPM steps on Stable Diffusion 2.1's schedule, each a batch of two through the U-Net, then VAE decoder and HiFi-GAN;
on a GPU all of it in float16. On a CPU it would take half an hour a clip: there its steps are a few timed ones, taken
times what makes them 200, and text and decoding are timed whole. Rows say so; `musiccm bench tta --whole` times all.

Ours is the pipeline, told its guidance scale, with the same VAE and vocoder (`original`) and with the fast decoder at
its default size. Both sides live in one process and take turns; every clip has a new caption.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

from musiccm.audio.mel import MelConfig
from musiccm.commands._timing import now, row
from musiccm.commands.bench import load
from musiccm.config import load_experiment
from musiccm.device import choose_device
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.bundle import DECODERS
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.text_tokenizer import train_text_tokenizer
from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.guidance_branch import with_guidance_branch
from musiccm.pipeline import Pipeline

inference = load(Path(__file__).with_name("inference.py"))

ROOT = Path(__file__).parents[1]
STEPS, GUIDANCE_SCALE = 200, 3.0
#: Times as fast as the baseline, text to sound.
TARGET = 100.0
#: Steps of the baseline that are timed on a CPU; `--whole` sets WHOLE, and all of them are.
MEASURED, WHOLE = 4, False
#: Timed calls of (ours, the baseline).
REPEATS = (3, 2)
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "prediction_type": "v_prediction", "clip_sample": False}
CAPTION = "a dog barks twice and then rain falls on a metal roof, take {}"


def write_teacher(folder: Path) -> Path:
    """A bundle of the published shapes, in half precision on disk."""
    torch.manual_seed(0)
    unet = load_experiment(ROOT / "experiments/tta/unet_light.yaml")["model"]["init_args"]["unet"]
    text = T5Config(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16,
                    feed_forward_proj="gated-gelu")
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=64, sampling_rate=16000, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False)
    makers: dict[str, Any] = {
        "unet": lambda: UNet2DConditionModel(**unet), "text_encoder": lambda: T5EncoderModel(text),
        "tokenizer": lambda: train_text_tokenizer([CAPTION.format(take) for take in range(100)]),
        "vae": lambda: AutoencoderKL(
            in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(128, 256, 512), latent_channels=8),
        "vocoder": lambda: SpeechT5HifiGan(vocoder), "decoder": lambda: FastDecoder({}),
        "scheduler": lambda: {"_class_name": "DDPMScheduler", **SCHEDULE},
    }
    for name, make in makers.items():  # one after the other: each is large
        save_part(folder, name, make(), torch.float16)
    save_settings(folder, mel=MelConfig())
    return folder


def write_student(teacher: Path, folder: Path) -> Path:
    """A student beside its teacher: its U-Net with a guidance branch, all else borrowed."""
    bundle = Bundle.from_pretrained(teacher)
    unet = with_guidance_branch(bundle.unet, 0, str(teacher))
    info = StudentInfo("sample", GUIDANCE_SCALE, guidance="variable")
    return export_student(unet, bundle, folder, info, torch.float16, base=f"../{teacher.name}")


class Guided:
    """The baseline: guided steps, a batch of two each, on a GPU in float16."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype | None = None) -> None:
        self.device, self.made = device, 0
        dtype = dtype or (torch.float16 if device == "cuda" else torch.float32)
        bundle = Bundle.from_pretrained(folder, dtype=dtype)
        self.tokenizer, self.shape = bundle.tokenizer, bundle.latent_shape()
        self.text, self.unet, self.codec, self.vocoder = (
            module.to(device, dtype) for module in (
                bundle.text_encoder, bundle.unet, bundle.codec("none"), bundle.vocoder))
        self.scheduler = DDPMScheduler(**SCHEDULE)

    def encode(self, caption: str) -> tuple[Tensor, Tensor]:
        """States and mask of the empty text and the caption."""
        tokens = self.tokenizer(["", caption], padding=True, return_tensors="pt").to(self.device)
        states = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return states, tokens.attention_mask.bool()

    def sample(self, states: Tensor, mask: Tensor, steps: int) -> Tensor:
        """The first `steps` of the schedule's."""
        z = torch.randn(1, *self.shape, device=self.device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(STEPS, device=self.device)
        for t in self.scheduler.timesteps[:steps]:
            both = self.scheduler.scale_model_input(torch.cat([z] * 2), t)
            null, cond = self.unet(both, t, encoder_hidden_states=states, encoder_attention_mask=mask).sample.chunk(2)
            z = self.scheduler.step(null + GUIDANCE_SCALE * (cond - null), t, z).prev_sample
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Its sound; the codec unfolds latents and mel where a bundle folds them."""
        return self.vocoder(self.codec.decode_mel(z))

    @torch.no_grad()
    def ask(self, steps: int) -> dict[str, float]:
        """Seconds of a clip, in all and by part, the sampler's as those of `STEPS` steps."""
        self.made += 1
        times = [now()]
        states, mask = self.encode(CAPTION.format(self.made))
        times.append(now())
        z = self.sample(states, mask, steps)
        times.append(now())
        self.decode(z)
        times.append(now())
        text, sampler, decode = (end - start for start, end in zip(times, times[1:], strict=False))
        found = {"text": text, "sampler": sampler * STEPS / steps, "decode": decode}
        return {**found, "total": sum(found.values())}


class OneCall:
    """The pipeline, accelerated as its device wants it, with either decoder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.made = 0
        self.pipe = Pipeline.from_pretrained(folder, decoder="fast").to(device)
        if device == "cuda":
            self.pipe.accelerate(half=True, backend="inductor")
        else:
            self.pipe.accelerate()
        self.codecs = {name: self.pipe.bundle.codec(name).to(device) for name in DECODERS}
        self.clock = inference.Clock(("text", self.pipe.conditioner, "prompts"),
                                     *[("decode", codec, "decode") for codec in self.codecs.values()])

    def ask(self, decoder: str) -> dict[str, float]:
        """Seconds of a clip, in all and by part."""
        self.made += 1
        self.pipe.codec = self.codecs[decoder]
        return self.clock.parts(lambda: self.pipe(CAPTION.format(self.made), 1, guidance_scale=GUIDANCE_SCALE))


def compare(teacher: Path, student: Path, device: str) -> list[dict]:
    """Rows, the two sides taking turns."""
    ours, theirs = OneCall(student, device), Guided(teacher, device)
    steps = STEPS if WHOLE or device == "cuda" else MEASURED
    for _ in range(3 if device == "cuda" else 1):  # every network, and what CUDA graphs record at a second call
        for decoder in DECODERS:
            ours.ask(decoder)
        theirs.ask(1)
    spent: dict[str, list[dict[str, float]]] = {}
    for repeat in range(max(REPEATS)):
        for name, times in {**dict.fromkeys(DECODERS, REPEATS[0]), "teacher": REPEATS[1]}.items():
            if repeat < times:
                print(f"{name}, {repeat + 1} of {times}", file=sys.stderr, flush=True)
                spent.setdefault(name, []).append(theirs.ask(steps) if name == "teacher" else ours.ask(name))

    def of(name: str, part: str) -> list[float]:
        return [one[part] for one in spent[name]]

    how = "all timed" if steps == STEPS else f"{steps} timed x {STEPS / steps:g}"
    rows = [row(f"one call, {name} decoder, text to sound, against {STEPS} guided steps ({how})", of(name, "total"),
                of("teacher", "total"), "s", TARGET) for name in DECODERS]
    return rows + [row(f"of that {part}, {name} decoder", of(name, part), of("teacher", part), "s")
                   for name in DECODERS for part in inference.PARTS_OF_A_CLIP]


def run(bundle: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        teacher = write_teacher(Path(scratch, "teacher"))
        return compare(teacher, write_student(teacher, Path(scratch, "student")), choose_device("auto"))
