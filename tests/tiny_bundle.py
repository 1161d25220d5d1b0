"""A bundle with random weights and very small configurations, of the same classes as a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musiccm.audio.mel import MelConfig
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.fast_decoder import FastDecoder, FastDecoderConfig

CAPTIONS = [
    "a calm piano melody over soft strings",
    "a fast marimba tune with steady drums",
    "slow organ chords",
    "a bright synth lead with bass and drums",
]


def make_unet(frames: int = 8, cond_width: int = 32) -> UNet2DConditionModel:
    """A U-Net conditioned as MusicLDM's: the CLAP vector concatenated to the time embedding."""
    return UNet2DConditionModel(
        sample_size=[frames, 4], in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", cross_attention_dim=[16, 32], attention_head_dim=(1, 2),
        norm_num_groups=8, class_embed_type="simple_projection", projection_class_embeddings_input_dim=cond_width,
        class_embeddings_concat=True,
    )


def make_vae() -> AutoencoderKL:
    """A VAE that takes the mel pixel-unshuffled by 2 and shrinks it by 8 more; latents have their own statistics."""
    return AutoencoderKL(
        in_channels=4, out_channels=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        latent_channels=4, norm_num_groups=4, mid_block_add_attention=False, scaling_factor=1.0,
        latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.5, 0.5, 1.0, 2.0),
    )


def make_clap(vocab_size: int, cond_width: int = 32) -> ClapModel:
    """A CLAP with both towers."""
    config = ClapConfig(
        projection_dim=cond_width,
        text_config={"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 64, "max_position_embeddings": 82},
        audio_config={"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1],
                      "num_attention_heads": [2, 2], "num_mel_bins": 64, "spec_size": 128, "num_hidden_layers": 2},
    )
    return ClapModel(config)


def make_feature_extractor() -> ClapFeatureExtractor:
    """One-second windows at 16 kHz: 101 frames of 64 bins."""
    return ClapFeatureExtractor(
        feature_size=64, sampling_rate=16000, hop_length=160, max_length_s=1, fft_window_size=512, frequency_min=50,
        frequency_max=8000, truncation="rand_trunc", padding="repeatpad",
    )


def make_vocoder() -> SpeechT5HifiGan:
    """MusicLDM's upsampling rates, few channels; gives 32 samples too many, as the original."""
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=64, sampling_rate=16000, upsample_initial_channel=32, upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    ))
    for module in vocoder.modules():
        # The library's own initial weights are so small that the sound is silence in 16 bits.
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            torch.nn.init.xavier_normal_(module.weight)
    return vocoder


def make_decoder() -> FastDecoder:
    """A fast decoder of `make_vae`'s latents."""
    return FastDecoder(FastDecoderConfig(latent_channels=4, latent_bins=4, latent_hop=2560, hop_length=160, n_fft=320,
                                         width=16, hidden=24, latent_blocks=1, blocks=1, kernel_size=3))


SCHEDULER = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
    "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "epsilon",
}


def build_random_bundle(
    path: str | Path, frames: int = 8, dtype: torch.dtype | None = None, seed: int = 0, evaluators: bool = True,
    decoder: bool = False,
) -> Path:
    """Write a whole bundle with random weights.

    Args:
        path: Directory to write.
        frames: Latent frames of a clip; 8 is 128 mel frames, 1.28 s.
        dtype: Type on disk.
        seed: Of the weights.
        evaluators: Whether to write the tagger and the AudioMAE-style network too.
        decoder: Whether to write a fast decoder too.

    Returns:
        The directory.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(CAPTIONS * 2, vocab_size=300)
        parts = {
            "tokenizer": tokenizer,
            "feature_extractor": make_feature_extractor(),
            "scheduler": SCHEDULER,
            "unet": make_unet(frames),
            "vae": make_vae(),
            "text_encoder": make_clap(len(tokenizer)),
            "vocoder": make_vocoder(),
        }
        if evaluators:
            from musiccm.models.features import ViTConfig, ViTFeatures
            from musiccm.models.tagger import Tagger, TaggerConfig

            tags = ["drums:none", "drums:rock", "instrument:organ", "instrument:piano"]
            parts["evaluators/tagger"] = Tagger(TaggerConfig(tags=tags))
            parts["evaluators/audiomae"] = ViTFeatures(
                ViTConfig(frames=frames * 16, bins=64, patch_size=16, width=32, depth=4, heads=2)
            )
        if decoder:
            parts["decoder"] = make_decoder()
    for name, part in parts.items():
        save_part(path, name, part, dtype)
    save_settings(path, mel=MelConfig())
    return path


def build_random_student(folder: Path) -> Path:
    """An exported student of random weights with a fast decoder, beside its teacher; its folder."""
    teacher = Bundle.from_pretrained(build_random_bundle(folder / "teacher", frames=4, evaluators=False, decoder=True))
    torch.manual_seed(11)
    return export_student(make_unet(frames=4), teacher, folder / "student", StudentInfo("v_prediction", 3.0))
