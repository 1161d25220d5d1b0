"""Frozen feature networks that the discriminator's heads and the clip's own mel condition look through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.audio.mel import MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder
from musiccm.models.fbank_adapter import FbankAdapter

# What a masked autoencoder's checkpoint has beyond its encoder.
DECODER_KEYS = ("mask_token", "decoder", "head")


@dataclass
class ViTConfig:
    """Shape and input of a `ViTFeatures`; the defaults are AudioMAE's ViT-B.

    Args:
        frames: Frames of the full input, a multiple of the patch.
        bins: Bins of the network's input, a multiple of the patch.
        patch_size: Side of a patch.
        width: Width of a token.
        depth: Transformer blocks.
        heads: Attention heads a block.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        indices: Blocks whose output is used; None spreads four evenly, the last included (2, 5, 8, 11 of twelve).
        input: `kaldi`: the network was trained on Kaldi's fbank (AudioMAE); `mel`: on the bundle's own mel.
        mean: Of the network's training input.
        std: Of the network's training input. AudioMAE divides by twice it.
    """

    frames: int = 1024
    bins: int = 128
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    indices: list[int] | None = None
    input: str = "mel"
    mean: float = -4.2677393
    std: float = 4.5689974


class ViTFeatures(nn.Module):
    """An AudioMAE-style ViT (timm's `VisionTransformer`, whose weight names are AudioMAE's) over decoded mels.

    Features are the patch embedding and the raw outputs of some blocks, without the class token; tokens are ordered by
    time, then frequency. Gradients flow to the mel. Weights are trainable until frozen: a bundle freezes what it loads.

    Args:
        config: Shape, as an object or a mapping.
        source: The mel's front end.

    Raises:
        MusiccmError: If the configuration does not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTConfig | Mapping[str, Any], source: MelConfig | None = None) -> None:
        super().__init__()
        self.config = c = make_config(ViTConfig, config)
        source = source or MelConfig()
        if c.frames % c.patch_size or c.bins % c.patch_size:
            raise MusiccmError(f"ViT features: {c.frames} frames x {c.bins} bins are no multiples of {c.patch_size}")
        quarters = [math.floor((i + 1) * c.depth / 4 + 0.5) - 1 for i in range(4)]
        self.indices = sorted(set(c.indices)) if c.indices is not None else sorted({i for i in quarters if i >= 0})
        if not self.indices or self.indices[0] < 0 or self.indices[-1] >= c.depth:
            raise MusiccmError(f"ViT features: indices {c.indices} are not blocks of a depth of {c.depth}")
        if c.input == "kaldi":
            self.adapter = FbankAdapter.to_kaldi(source, c.bins)
        elif c.input == "mel" and c.bins == source.n_mels:
            self.adapter = FbankAdapter.identity(c.bins)
        else:
            raise MusiccmError(f"ViT features: input '{c.input}' with {c.bins} bins cannot be made from a mel of "
                               f"{source.n_mels} bins; use 'kaldi', or 'mel' with as many bins")
        from timm.models.vision_transformer import VisionTransformer  # settings are read without it

        self.vit = VisionTransformer(
            img_size=(c.frames, c.bins), patch_size=c.patch_size, in_chans=1, num_classes=0, global_pool="avg",
            fc_norm=False, embed_dim=c.width, depth=c.depth, num_heads=c.heads, mlp_ratio=c.mlp_ratio,
        )
        # Buffers, so that they follow copies and averages of the module; config.json is where they are kept.
        self.register_buffer("mean", torch.tensor(float(c.mean)), persistent=False)
        self.register_buffer("std", torch.tensor(float(c.std)), persistent=False)

    @property
    def widths(self) -> list[int]:
        """Width of each feature: the patch embedding and the chosen blocks."""
        return [self.config.width] * (1 + len(self.indices))

    @property
    def embed_width(self) -> int:
        """Width of `embed`'s rows."""
        return self.config.width

    def set_statistics(self, mean: float, std: float) -> None:
        """Replace the input's mean and standard deviation (of the adapter's output over a corpus)."""
        self.mean.fill_(mean)
        self.std.fill_(std)

    def normalise(self, mel_BMN: Tensor) -> Tensor:
        """The decoded mel as the network's input: adapted bins, `(x - mean) / (2 std)` as AudioMAE does."""
        return (self.adapter(mel_BMN) - self.mean) / (2.0 * self.std)

    def _tokens(self, mel_BMN: Tensor) -> Tensor:
        """Patch tokens with positions, [B, tokens, width]; a crop takes the first rows of the position grid."""
        patch = self.config.patch_size
        rows = mel_BMN.shape[1] // patch
        if not 0 < rows <= self.config.frames // patch:
            raise MusiccmError(f"ViT features: {mel_BMN.shape[1]} mel frames; the network takes {patch} to "
                               f"{self.config.frames}")
        image = self.normalise(mel_BMN[:, : rows * patch]).unsqueeze(1)
        tokens = self.vit.patch_embed.proj(image).flatten(2).transpose(1, 2)
        prefix = self.vit.num_prefix_tokens
        return tokens + self.vit.pos_embed[:, prefix : prefix + tokens.shape[1]]

    def _run(self, mel_BMN: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features, and the last block's tokens after the final norm."""
        tokens = self._tokens(mel_BMN)
        prefix = self.vit.num_prefix_tokens
        features = [tokens]
        class_token = self.vit.cls_token + self.vit.pos_embed[:, :prefix]
        x = torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for index, block in enumerate(self.vit.blocks):
            x = block(x)
            if index in self.indices:
                features.append(x[:, prefix:])
        return features, self.vit.norm(x)[:, prefix:]

    def forward(self, mel_BMN: Tensor) -> list[Tensor]:
        """Features of a mel.

        Args:
            mel_BMN: Natural-log mel of at most `frames` frames; a rest shorter than a patch is cut.

        Returns:
            K tensors [B, tokens, width].

        Raises:
            MusiccmError: If the mel is longer than the network's input or shorter than a patch.
        """
        return self._run(mel_BMN)[0]

    def with_embedding(self, mel_BMN: Tensor) -> tuple[list[Tensor], Tensor]:
        """What `forward` and `embed` say, from one pass through the network."""
        features, tokens = self._run(mel_BMN)
        return features, tokens.mean(dim=1)

    def embed(self, mel_BMN: Tensor) -> Tensor:
        """One vector a clip, the mean of the final tokens, [B, width]."""
        return self.with_embedding(mel_BMN)[1]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, under timm's (AudioMAE's) weight names."""
        config = replace(self.config, mean=self.mean.item(), std=self.std.item())
        save_weights_folder(folder, {"_class_name": "ViTFeatures", **asdict(config)}, self.vit.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, source: MelConfig | None = None) -> ViTFeatures:
        """Read a folder; a masked autoencoder's decoder weights in it are passed over.

        Raises:
            MusiccmError: If a file is missing or the two do not belong together.
        """
        features = cls(make_config(ViTConfig, read_config(folder), f"{folder}/config.json"), source)
        load_weights(features.vit, folder, DECODER_KEYS)
        return features.eval()


class ClapFeatures(nn.Module):
    """CLAP's audio tower as a feature network (the paper's table 3): patch embedding and every stage.

    Args:
        clap: A `ClapModel`; frozen here.
        feature_extractor: Its extractor, read for its numbers.
        source: The mel's front end.

    Raises:
        MusiccmError: If it is CLAP's text tower alone.
    """

    def __init__(self, clap: nn.Module, feature_extractor: Any, source: MelConfig | None = None) -> None:
        super().__init__()
        if not hasattr(clap, "audio_model"):
            raise MusiccmError("text_encoder is CLAP's text tower alone, which has no features of audio; take "
                               "adversarial.features audiomae, or add the audio tower by `musiccm convert`")
        fe, source = feature_extractor, source or MelConfig()
        self.clap = clap.eval().requires_grad_(False)
        # The extractor's two filter banks: HTK for the fusion models, Slaney for the others.
        filters_FP = fe.mel_filters if fe.truncation == "fusion" else fe.mel_filters_slaney
        self.adapter = FbankAdapter.to_filters(
            source, torch.as_tensor(filters_FP), fe.sampling_rate, fe.fft_window_size, floor=-100.0,
            scale=10 / math.log(10),
        )
        self.frames = fe.nb_max_samples // fe.hop_length + 1
        self.padding = fe.padding
        # Mel frames of ours to frames of the extractor's.
        self.rate = (fe.sampling_rate / fe.hop_length) / (source.sample_rate_hz / source.hop_length)
        audio = clap.config.audio_config
        stages = [audio.patch_embeds_hidden_size * 2**stage for stage in range(len(audio.depths))]
        # Each stage but the last ends by merging patches, which doubles the width.
        self.widths = [stages[0], *stages[1:], stages[-1]]
        self.embed_width = int(clap.config.projection_dim)

    def train(self, mode: bool = True) -> ClapFeatures:
        """Stay in eval mode."""
        return super().train(False)

    def _input(self, mel_BMN: Tensor) -> Tensor:
        x = self.adapter(mel_BMN)
        if self.rate != 1.0:
            x = F.interpolate(x.transpose(1, 2), size=round(x.shape[1] * self.rate), mode="linear").transpose(1, 2)
        if x.shape[1] < self.frames and self.padding != "pad":
            x = x.repeat(1, max(1, self.frames // x.shape[1]), 1)
        x = x[:, : self.frames]
        # Decibels of digital silence, what the extractor's zero padding becomes.
        return F.pad(x, (0, 0, 0, self.frames - x.shape[1]), value=-100.0).unsqueeze(1)

    def _run(self, mel_BMN: Tensor) -> Any:
        features, is_longer = self._input(mel_BMN), None
        if self.clap.config.audio_config.enable_fusion:
            features = features.repeat(1, 4, 1, 1)
            is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        return self.clap.audio_model(input_features=features, is_longer=is_longer, output_hidden_states=True)

    def forward(self, mel_BMN: Tensor) -> list[Tensor]:
        """Features of a mel: K tensors [B, tokens, width], K = stages + 1."""
        return self.with_embedding(mel_BMN)[0]

    def with_embedding(self, mel_BMN: Tensor) -> tuple[list[Tensor], Tensor]:
        """What `forward` and `embed` say, from one pass through the network."""
        output = self._run(mel_BMN)
        features = [state.flatten(2).transpose(1, 2) for state in output.hidden_states]
        return features, F.normalize(self.clap.audio_projection(output.pooler_output), dim=-1)

    def embed(self, mel_BMN: Tensor) -> Tensor:
        """CLAP's audio embedding of the mel, unit length, [B, D]."""
        return self.with_embedding(mel_BMN)[1]
