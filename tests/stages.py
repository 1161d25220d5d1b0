"""Small stages of training, and sounds for them."""

from __future__ import annotations

from typing import Any

import torch
from tiny_bundle import CAPTIONS

from musiccm.audio import MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.models.bundle import Bundle
from musiccm.systems.stages.audio_vae import AudioVaeStage
from musiccm.systems.stages.audiomae import AudioMaeStage
from musiccm.systems.stages.base import Stage
from musiccm.systems.stages.decoder import DecoderStage
from musiccm.systems.stages.teacher import TeacherStage
from musiccm.systems.stages.vae import VaeStage
from musiccm.systems.stages.vocoder import VocoderStage

SAMPLES = 128 * 160


def waves(count: int = 6) -> WaveformBatch:
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(count, SAMPLES, generator=generator)
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]
    return WaveformBatch(waveform, torch.zeros(count, 0), [f"clip{i}" for i in range(count)], captions,
                         [{"instrument": ("piano", "organ")[i % 2]} for i in range(count)])


def stage_of(name: str, bundle: str, **options: Any) -> Stage:
    torch.manual_seed(0)
    opened = Bundle.from_pretrained(bundle)
    config = {part: {key: value for key, value in dict(opened.part(part).config if part != "vocoder" else
                                                       opened.vocoder.config.to_dict()).items()
                     if not key.startswith("_")} for part in ("unet", "vae", "vocoder")}
    vit = {"frames": 128, "bins": 64, "patch_size": 16, "width": 32, "depth": 2, "heads": 2}
    if name == "vae":
        return VaeStage(config["vae"], MelConfig(), crop_frames=64, bundle=bundle)
    if name == "vocoder":
        return VocoderStage(config["vocoder"], segment_frames=24, margin_frames=4, bundle=bundle)
    if name == "decoder":
        decoder = opened.part("decoder").config
        return DecoderStage(vars(decoder), (64, 256), adversarial_weight=1.0, distilled_share=0.5, bundle=bundle)
    if name == "audio_vae":
        vae = {"sample_rate_hz": 16000, "strides": [4, 8], "kernel_sizes": [9, 17], "channels": [4, 8],
               "depths": [1, 1], "decoder_strides": [8, 4], "decoder_kernel_sizes": [17, 9],
               "decoder_channels": [16, 8], "decoder_depths": [1, 1]}
        discriminator = {"periods": [2], "period_widths": [4], "resolutions": [[64, 16, 64]], "width": 4}
        return AudioVaeStage(vae, 1024, (512, 128), discriminator=discriminator, bundle=bundle, **options)
    if name == "audiomae":
        return AudioMaeStage(vit, decoder_width=12, decoder_depth=1, decoder_heads=2, bundle=bundle)
    return TeacherStage(config["unet"], bundle=bundle)
