"""A bundle with random weights whose text encoder gives tokens: a T5, its vocabulary made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from tiny_bundle import CAPTIONS, SCHEDULER, make_decoder, make_vae, make_vocoder
from tokenizers import SentencePieceUnigramTokenizer
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from musiccm.audio.mel import MelConfig
from musiccm.models.bundle import save_settings
from musiccm.models.bundle.files import save_part
from musiccm.models.features import ViTConfig, ViTFeatures

WIDTH = 24


def make_t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer, of the captions' own pieces."""
    pieces = SentencePieceUnigramTokenizer()
    pieces.train_from_iterator(CAPTIONS * 4, vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"],
                               unk_token="<unk>", show_progress=False)
    vocab = [tuple(piece) for piece in json.loads(pieces.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)


def t5_config(vocab_size: int) -> T5Config:
    """FLAN-T5's kind of network, very small."""
    return T5Config(vocab_size=vocab_size, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=2,
                    feed_forward_proj="gated-gelu", decoder_start_token_id=0)


def make_token_unet(frames: int = 4, width: int = WIDTH) -> UNet2DConditionModel:
    """A U-Net that attends to tokens, as TANGO's does, without class labels."""
    return UNet2DConditionModel(
        sample_size=[frames, 4], in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=(1, 2), norm_num_groups=8,
    )


def build_token_bundle(path: str | Path, frames: int = 4, unet: bool = True) -> Path:
    """Write a whole bundle with random weights, without a feature extractor, for there is no CLAP.

    Args:
        path: Directory to write.
        frames: Latent frames of a clip.
        unet: Whether to write a U-Net and its scheduler too.

    Returns:
        The directory.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_t5_tokenizer()
        parts = {
            "vae": make_vae(), "vocoder": make_vocoder(), "decoder": make_decoder(), "tokenizer": tokenizer,
            "text_encoder": T5EncoderModel(t5_config(len(tokenizer))),
            "evaluators/audiomae": ViTFeatures(
                ViTConfig(frames=frames * 16, bins=64, patch_size=16, width=32, depth=2, heads=2)),
        }
        if unet:
            parts |= {"unet": make_token_unet(frames), "scheduler": SCHEDULER}
    for name, part in parts.items():
        save_part(path, name, part)
    save_settings(path, mel=MelConfig())
    return path
