"""A bundle of MeLoDy's kind with random weights: clips of .64 s, 160 latent frames, 16 tokens, at 16 kHz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_bundle import build_random_bundle

from musiccm.models.bundle.borrow import begin_bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.features import load_source
from musiccm.models.melody.semantic_lm import SemanticLM, SemanticLMConfig
from musiccm.models.melody.tokenizer import SemanticTokenizer, SemanticTokenizerConfig
from musiccm.systems.stages.dual_path import SCHEDULER

SAMPLES, FRAMES, TOKENS, PER, WIDTH = 10240, 160, 16, 10, 12
VAE: dict[str, Any] = {
    "sample_rate_hz": 16000, "latent_channels": 4, "strides": [8, 8], "kernel_sizes": [17, 17], "channels": [8, 12],
    "depths": [1, 1], "decoder_strides": [8, 8], "decoder_kernel_sizes": [17, 17], "decoder_channels": [16, 8],
    "decoder_depths": [1, 1], "residual_kernel_sizes": [3], "residual_dilations": [[1]]}
DPD: dict[str, Any] = {
    "channels": 4, "width": 16, "merged": [4], "segment": 16, "heads": 2, "coarse_layers": 1, "feed_forward": 16,
    "recurrent_width": 8, "angle_width": 8, "token_width": WIDTH, "frames_per_token": PER, "frames": FRAMES}
LM: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 48, "prefix_codes": 3, "prefix_codebook": 8}


def random_tokenizer(base: Path, codebook: int = 24, width: int = WIDTH) -> SemanticTokenizer:
    """A tokenizer of a bundle's tagger, whose centroids are drawn."""
    source = load_source("tagger", base)
    tokenizer = SemanticTokenizer(SemanticTokenizerConfig("tagger", source.fingerprint, source.width, codebook, width))
    for buffer in (tokenizer.projection_FD, tokenizer.centroids_KD):
        assert buffer is not None
        buffer.normal_()
    return tokenizer


def build_random_melody(folder: Path, seed: int = 0) -> Path:
    """Write `base` (CLAP, evaluators and a U-Net's parts) and `melody`, which borrows CLAP and evaluators of it.

    Args:
        folder: Where both are to lie.
        seed: Of the weights.

    Returns:
        The folder of `melody`.
    """
    base, path = build_random_bundle(folder / "base", decoder=True), folder / "melody"
    begin_bundle(path, "../base", "clap")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AudioVae(VAE)
        vae.start_posterior_at(0.1)
        vae.set_moments(torch.tensor([0.1, 0.0, -0.1, 0.05]), torch.tensor([0.3, 0.2, 0.4, 0.25]))
        tokenizer = random_tokenizer(base)
        lm = SemanticLM(SemanticLMConfig(**LM, codebook=tokenizer.codebook, tokens=TOKENS, joint_width=32,
                                         tokenizer=tokenizer.fingerprint))
        lm.rvq.fit(torch.nn.functional.normalize(torch.randn(64, 32), dim=1), seed)
        network = DualPath(DPD)
        torch.nn.init.normal_(network.out.weight, std=0.3)
        for name, part in {"audio_vae": vae, "semantic_tokenizer": tokenizer, "semantic_lm": lm, "dual_path": network,
                           "scheduler": SCHEDULER}.items():
            save_part(path, name, part)
    return path
