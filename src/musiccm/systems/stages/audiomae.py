"""AudioMAE-style pre-training: a timm ViT that reconstructs hidden patches of the mel."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.losses.masked import masked_patch_loss, patchify, random_keep
from musiccm.models.bundle.files import save_part
from musiccm.models.features import ViTFeatures
from musiccm.systems.stages.base import Stage, mean_of


class MaskedDecoder(nn.Module):
    """Visible tokens back to all patches; thrown away after training (MAE, He et al. 2022, section 3).

    Args:
        width: encoder width.
        patches: number of patches of an image.
        patch_values: values to predict for a patch.
        decoder_width: width of the decoder.
        depth: its blocks.
        heads: attention heads a block.
    """

    def __init__(self, width: int, patches: int, patch_values: int, decoder_width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, decoder_width))
        self.blocks = nn.Sequential(*[Block(decoder_width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(decoder_width)
        self.predict = nn.Linear(decoder_width, patch_values)

    def forward(self, visible_BLD: Tensor, keep_BL: Tensor) -> Tensor:
        """Predict every patch, [B, P, patch_values]."""
        tokens_BLE = self.embed(visible_BLD)
        batch, patches = len(tokens_BLE), self.position.shape[1]
        full_BPE = self.mask_token.to(tokens_BLE.dtype).expand(batch, patches, -1)
        full_BPE = full_BPE.scatter(1, keep_BL.unsqueeze(-1).expand_as(tokens_BLE), tokens_BLE)
        return self.predict(self.norm(self.blocks(full_BPE + self.position)))


class MaskedAutoencoder(nn.Module):
    """The encoder that stays and the decoder that goes.

    Args:
        features: the feature network whose `vit` is trained.
        decoder_width: width of the decoder.
        decoder_depth: its blocks.
        decoder_heads: attention heads a block.
    """

    def __init__(self, features: ViTFeatures, decoder_width: int, decoder_depth: int, decoder_heads: int) -> None:
        super().__init__()
        self.features = features
        vit = features.vit
        self.patch = vit.patch_embed.patch_size[0]
        self.decoder = MaskedDecoder(
            vit.embed_dim, vit.patch_embed.num_patches, self.patch**2, decoder_width, decoder_depth, decoder_heads
        )

    def forward(self, mel_BMN: Tensor, keep_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true patches of the normalised mel, from the visible ones."""
        vit = self.features.vit
        image_B1MN = self.features.normalise(mel_BMN).unsqueeze(1)
        tokens_BPD = vit.patch_embed(image_B1MN)
        prefix = vit.num_prefix_tokens
        tokens_BPD = tokens_BPD + vit.pos_embed[:, prefix:]
        visible_BLD = tokens_BPD.gather(1, keep_BL.unsqueeze(-1).expand(-1, -1, tokens_BPD.shape[-1]))
        if prefix:
            cls = (vit.cls_token + vit.pos_embed[:, :prefix]).expand(len(visible_BLD), -1, -1)
            visible_BLD = torch.cat([cls, visible_BLD], dim=1)
        visible_BLD = vit.norm(vit.blocks(visible_BLD))[:, prefix:]
        return self.decoder(visible_BLD, keep_BL), patchify(image_B1MN, self.patch)


class AudioMaeStage(Stage):
    """Trains the discriminator's feature network without labels.

    Args:
        features: `ViTConfig` fields; the input statistics are taken from the corpus and replace its own.
        mel: mel front end.
        mask_ratio: share of hidden patches; AudioMAE (Huang et al. 2022) uses 0.8.
        decoder_width: width of the decoder.
        decoder_depth: its blocks.
        decoder_heads: attention heads a block.
        statistics_batches: training batches over which the mel's mean and standard deviation are taken.
        **stage: arguments of `Stage`.
    """

    stage = "audiomae"
    part: MaskedAutoencoder
    kinds = {"decay": "mask_ratio", "count": "decoder_width decoder_depth decoder_heads statistics_batches"}

    def __init__(
        self,
        features: dict[str, Any],
        mel: MelConfig | None = None,
        mask_ratio: float = 0.8,
        decoder_width: int = 96,
        decoder_depth: int = 2,
        decoder_heads: int = 3,
        statistics_batches: int = 8,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.mel = LogMel(mel or MelConfig())
        self.mask_ratio, self.statistics_batches = mask_ratio, statistics_batches
        self.part = MaskedAutoencoder(ViTFeatures(features), decoder_width, decoder_depth, decoder_heads)
        self.finish_init()

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Take the statistics of the network's input over the first batches; a resumed run finds the same."""
        features = self.part.features
        frames = torch.cat([
            features.adapter(self.mel(batch.waveform_BS.to(self.device))).flatten()
            for batch in islice(self.trainer.datamodule.train_dataloader(), self.statistics_batches)
        ]).double()
        for network in (features, self.best.features):
            network.set_statistics(frames.mean().item(), frames.std().item())

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Error on the hidden patches."""
        return self.masked_loss(self.part, batch, generator), {}

    def masked_loss(self, part: nn.Module, batch: WaveformBatch, generator: torch.Generator) -> Tensor:
        """Mask, predict, compare."""
        mel_BMN = self.mel(batch.waveform_BS)
        patches = self.part.features.vit.patch_embed.num_patches
        keep_BL, hidden_BP = random_keep(len(mel_BMN), patches, self.mask_ratio, generator)
        predicted, target = part(mel_BMN, keep_BL.to(mel_BMN.device))
        return masked_patch_loss(predicted, target, hidden_BP.to(mel_BMN.device))

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Held-out error under fixed masks."""
        return {"masked_mse": self.masked_loss(self.best, batch, generator).expand(len(batch.ids))}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out error; 1.0 is what predicting each patch's mean gives."""
        return {"n": sum(len(m["masked_mse"]) for m in measured), "masked_mse": mean_of(measured, "masked_mse")}

    def save(self) -> None:
        """Write `evaluators/audiomae/`, the encoder alone."""
        save_part(self.bundle, "evaluators/audiomae", self.best.features)
