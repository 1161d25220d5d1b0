"""Write MusicLDM, CLAP and AudioMAE at full size with random weights: what a run costs does not depend on the weights.

    python tests/full_size.py --out DIR              a bundle in the diffusers layout
    python tests/full_size.py --out DIR --original   the authors' files, for `musiccm convert`

Parameter counts are checked against the published ones. Nothing that comes out of these networks is music.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_files import write_files
from original_ldm import OriginalUNet, OriginalVae, OriginalVocoder, randomise
from tiny_bundle import CAPTIONS, SCHEDULER
from torch import nn
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musiccm.audio.mel import MelConfig
from musiccm.models.bundle import save_settings
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.convert.clap import make_extractor
from musiccm.models.features import ViTConfig, ViTFeatures
from musiccm.models.tagger import Tagger, TaggerConfig

#: Millions of parameters. AudioMAE's encoder; with the 527-class head of its fine-tuned kind it is 85.7 trainable.
COUNTS = {"unet": 185.04, "vae": 55.38, "vocoder": 55.26, "text_encoder": 193.9, "evaluators/audiomae": 85.65}


def make_unet() -> UNet2DConditionModel:
    widths = [128, 256, 384, 640]
    return UNet2DConditionModel(
        sample_size=256, in_channels=8, out_channels=8, block_out_channels=widths, layers_per_block=2,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",), attention_head_dim=(4, 8, 12, 20),
        cross_attention_dim=widths, class_embed_type="simple_projection", projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(128, 256, 512), layers_per_block=2,
        latent_channels=8, scaling_factor=0.9,
    )


def make_vocoder() -> SpeechT5HifiGan:
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=64, sampling_rate=16000, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False,
    ))


def make_clap() -> ClapModel:
    """HTSAT-base and RoBERTa-base."""
    return ClapModel(ClapConfig(
        projection_dim=512,
        text_config={"vocab_size": 50265, "layer_norm_eps": 1e-5},
        audio_config={"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2],
                      "num_attention_heads": [4, 8, 16, 32], "enable_fusion": False},
    ))


def check_counts(parts: Mapping[str, Any]) -> None:
    for name, expected in COUNTS.items():
        found = sum(p.numel() for p in parts[name].parameters()) / 1e6
        print(f"{name:<20} {found:7.2f} M parameters")
        assert abs(found - expected) < 0.06, f"{name}: {found} M parameters, expected {expected}"


def write_bundle(out: Path) -> None:
    clap, tags = make_clap(), [f"instrument:{n}" for n in ("piano", "organ")]
    parts: dict[str, Any] = {
        "unet": make_unet(), "vae": make_vae(), "text_encoder": clap, "vocoder": make_vocoder(),
        "tokenizer": train_tokenizer(CAPTIONS * 2, vocab_size=300), "feature_extractor": make_extractor(clap),
        "scheduler": SCHEDULER, "evaluators/tagger": Tagger(TaggerConfig(tags=tags)),
        "evaluators/audiomae": ViTFeatures(ViTConfig(input="kaldi")),
    }
    check_counts(parts)
    for name, part in parts.items():
        save_part(out, name, part)
    save_settings(out, mel=MelConfig())


def write_original(out: Path) -> None:
    features, clap = ViTFeatures(ViTConfig(input="kaldi")), make_clap().eval()
    unet, vae, vocoder = randomise(OriginalUNet(), 0), randomise(OriginalVae(), 1), randomise(OriginalVocoder(), 2)
    # weight norm has a gain for every index of the first axis, which folding multiplies in
    gains = sum(p.numel() for name, p in vocoder.named_parameters() if name.endswith("weight_g"))
    counted = nn.ParameterList([p for name, p in vocoder.named_parameters() if not name.endswith("weight_g")])
    print(f"vocoder: {gains} gains of its weight norm beside")
    check_counts({"unet": unet, "vae": vae, "vocoder": counted, "text_encoder": clap, "evaluators/audiomae": features})
    write_files(out, unet, vae, vocoder, clap)
    beside = {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 768)}
    torch.save({"model": features.vit.state_dict() | beside}, out / "audiomae-pretrained.pth")
    print(f"musiccm convert --weights ema --out BUNDLE --ldm {out}/musicldm-ckpt.ckpt --vae {out}/vae-ckpt.ckpt "
          f"--clap {out}/clap-ckpt.pt --vocoder {out}/hifigan-ckpt.ckpt --audiomae {out}/audiomae-pretrained.pth "
          f"--tokenizer {out}/tokenizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--original", action="store_true", help="the authors' files in place of a bundle")
    args = parser.parse_args()
    torch.manual_seed(0)
    (write_original if args.original else write_bundle)(args.out)


if __name__ == "__main__":
    main()
