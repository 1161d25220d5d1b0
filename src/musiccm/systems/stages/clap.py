"""CLAP from scratch: both towers and the tokenizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from musiccm.data.batch import WaveformBatch
from musiccm.errors import MusiccmError
from musiccm.losses.contrastive import info_nce, recall_at_k
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SECOND_CLAP, save_part, save_second_clap
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.conditioners.clap import ClapFrontEnd
from musiccm.systems.stages.base import Stage

# CLIP clips the learned inverse temperature here: sharper logits make training unstable.
MAX_LOGIT_SCALE = math.log(100.0)


class ClapStage(Stage):
    """Trains a `ClapModel` by symmetric InfoNCE over pairs of a window and one of its clip's captions.

    The tokenizer is trained on the training captions before the first step; its vocabulary is at most the text tower's.

    Args:
        text: `ClapTextConfig` fields; `vocab_size` bounds the tokenizer's.
        audio: `ClapAudioConfig` fields. `hidden_size` must be the last width; the window of the feature extractor must
            give at most `spec_size^2 / num_mel_bins` frames.
        feature_extractor: `ClapFeatureExtractor` arguments.
        projection_dim: width of the shared space.
        max_tokens: longest caption in tokens.
        tag_weight: weight of the cross-entropy with which both embeddings, through one linear map that is dropped
            afterwards, tell the clip's tags. Large CLAP models start from towers that know such things (HTSAT from
            AudioSet's labels, RoBERTa from text); these start from nothing, and pairs alone teach them slowly. 0 needs
            no tags.
        recall_pairs: held-out pairs for recall; more are ignored, so that the figure keeps its meaning.
        second: whether it is the bundle's second CLAP, which conditions nothing: students that the first one tuned are
            scored by it. To be independent of that, it needs another seed, and clips and captions of its own.
        **stage: arguments of `Stage`.
    """

    stage = "clap"
    part_name = "text_encoder"
    part: ClapModel
    kinds = {"not_negative": "tag_weight", "count": "projection_dim max_tokens recall_pairs"}

    def __init__(
        self,
        text: dict[str, Any],
        audio: dict[str, Any],
        feature_extractor: dict[str, Any],
        projection_dim: int = 128,
        max_tokens: int = 80,
        tag_weight: float = 0.0,
        recall_pairs: int = 500,
        second: bool = False,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        if second:
            self.stage, self.part_name = "clap_second", SECOND_CLAP
        self.part = ClapModel(
            ClapConfig(text_config=text, audio_config=audio, projection_dim=projection_dim)
        ).train()
        self.feature_extractor = ClapFeatureExtractor(**feature_extractor)
        self.front_end = ClapFrontEnd(self.feature_extractor)
        self.max_tokens, self.recall_pairs, self.tag_weight = max_tokens, recall_pairs, tag_weight
        self.tokenizer: Any = None
        self.tag_head: nn.Linear | None = None
        self.finish_init()

    def setup(self, stage: str) -> None:
        """Train the tokenizer; the same captions give the same one, so a resumed run needs no copy of it."""
        if self.tokenizer is None and self.start_from is not None:
            self.tokenizer = self._tokenizer_of(self.start_from)
        if self.tokenizer is None:
            captions = [caption for clip in self.trainer.datamodule.train_clips for caption in clip.captions]
            self.tokenizer = train_tokenizer(captions, self.part.config.text_config.vocab_size, self.max_tokens)
        if self.tag_weight and self.tag_head is None:
            data = self.trainer.datamodule
            if data.vocabulary is None:
                raise MusiccmError(
                    f"{data.root}: the label files name neither tags nor attributes; set tag_weight: 0 for it"
                )
            self.tag_head = nn.Linear(self.part.config.projection_dim, len(data.vocabulary.names))

    def _tokenizer_of(self, bundle: str) -> Any:
        if self.part_name == SECOND_CLAP:
            return Bundle.from_pretrained(bundle, [SECOND_CLAP]).second_clap().tokenizer
        return Bundle.from_pretrained(bundle, ["tokenizer"]).tokenizer

    def trained(self) -> list[nn.Module]:
        """Both towers, and the map to the tags."""
        return [self.part, *([self.tag_head] if self.tag_head is not None else [])]

    def embed(self, clap: ClapModel, batch: WaveformBatch) -> tuple[Tensor, Tensor]:
        """Unit text and audio embeddings of a batch's pairs."""
        tokens = self.tokenizer(
            batch.captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        text = clap.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        audio = clap.get_audio_features(input_features=self.front_end(batch.waveform_BS))
        return text.pooler_output, audio.pooler_output

    def tag_loss(self, embedding_BD: Tensor, tags_BG: Tensor) -> Tensor:
        """Cross-entropy of the tags, averaged over them; components of unit vectors are brought near 1 first."""
        assert self.tag_head is not None
        logits_BG = self.tag_head(embedding_BD * embedding_BD.shape[1] ** 0.5)
        return F.binary_cross_entropy_with_logits(logits_BG, tags_BG)

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE over the batch, and the tags' cross-entropy."""
        text_BD, audio_BD = self.embed(self.part, batch)
        # ClapModel keeps one temperature a direction; their geometric mean trains both alike
        log_scale = 0.5 * (self.part.logit_scale_t + self.part.logit_scale_a)
        total, parts = info_nce(text_BD, audio_BD, log_scale.clamp(max=MAX_LOGIT_SCALE).exp())
        if self.tag_head is not None:
            parts["text_tags"] = self.tag_loss(text_BD, batch.tags_BG)
            parts["audio_tags"] = self.tag_loss(audio_BD, batch.tags_BG)
            total = total + self.tag_weight * (parts["text_tags"] + parts["audio_tags"])
        parts["logit_scale"] = log_scale.detach().exp()
        parts["accuracy"] = torch.as_tensor(recall_at_k(text_BD.detach(), audio_BD.detach(), 1))
        return total, parts

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Embeddings of held-out pairs."""
        text_BD, audio_BD = self.embed(self.best.eval() if self.ema else self.part, batch)
        return {"text_BD": text_BD, "audio_BD": audio_BD}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Recall in both directions over the first `recall_pairs` held-out pairs."""
        text_QD = torch.cat([m["text_BD"] for m in measured])[: self.recall_pairs]
        audio_QD = torch.cat([m["audio_BD"] for m in measured])[: self.recall_pairs]
        quality: dict[str, Any] = {"n": len(text_QD)}
        for k in (1, 10):
            quality[f"text_to_audio_recall_at_{k}"] = recall_at_k(text_QD, audio_QD, k)
            quality[f"audio_to_text_recall_at_{k}"] = recall_at_k(audio_QD, text_QD, k)
        quality["paired_cosine"] = (text_QD * audio_QD).sum(dim=1).mean().item()
        return quality

    def save(self) -> None:
        """Write `text_encoder/` (the whole model), `tokenizer/` and `feature_extractor/`, or all in one folder."""
        if self.part_name == SECOND_CLAP:
            save_second_clap(self.bundle, self.best, self.tokenizer, self.feature_extractor)
            return
        save_part(self.bundle, "text_encoder", self.best)
        save_part(self.bundle, "tokenizer", self.tokenizer)
        save_part(self.bundle, "feature_extractor", self.feature_extractor)
