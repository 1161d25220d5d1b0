"""The semantic tokenizer: k-means of features of a corpus, batch by batch, in a run that goes on where it was ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.data.batch import WaveformBatch
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.codebook import CodebookFitter
from musiccm.models.melody.features import NON_COMMERCIAL, load_source
from musiccm.models.melody.token_rate import token_count
from musiccm.models.melody.tokenizer import TOKENIZER, SemanticTokenizer, SemanticTokenizerConfig
from musiccm.systems.ranges import check_ranges
from musiccm.systems.stages.base import Stage


class SemanticTokenStage(Stage):
    """Fits a `SemanticTokenizer` to features of the corpus' windows.

    The first `statistics_steps` batches give mean, deviation and components, all others move the centroids. Nothing is
    learned by gradients: a step of the trainer is a batch, and the settings of the optimizer change nothing. One
    process fits.

    Args:
        source: Which features, see `musiccm.models.melody.features.SOURCES`.
        features: The bundle whose tagger or CLAP, or the local folder whose network they are of.
        layer: Which of its layers; null for its default.
        codebook: How many tokens there are to be.
        width: Principal components to keep; null keeps the features as they are.
        statistics_steps: Batches that are measured before the first clusters.
        non_commercial: Agrees to weights that are licensed for non-commercial use alone.
        **stage: Arguments of `Stage`.
    """

    stage = "semantic_tokens"
    part_name = TOKENIZER
    part: SemanticTokenizer
    kinds = {"count": "codebook statistics_steps"}

    def __init__(
        self,
        source: str = "tagger",
        features: str = "musiccm-tiny",
        layer: int | None = None,
        codebook: int = 1024,
        width: int | None = None,
        statistics_steps: int = 20,
        non_commercial: bool = False,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        check_ranges("model.init_args.", {"width": width}, ["width"], count="width")
        if self.start_from is not None or self.ema_decay is not None:
            raise MusiccmError("model.init_args: a tokenizer has neither an average nor weights to start from; leave "
                               "ema_decay and start_from out")
        self.automatic_optimization = False
        self.statistics_steps = statistics_steps
        # A list, as its weights belong to no checkpoint of this stage.
        self._source = [load_source(source, features, layer, non_commercial)]
        found = self._source[0]
        self.part = SemanticTokenizer(SemanticTokenizerConfig(
            source=source, source_fingerprint=found.fingerprint, features=found.width, codebook=codebook,
            width=found.width if width is None else width, layer=layer, licence=NON_COMMERCIAL.get(source),
        ), found)
        self.fitter = CodebookFitter(codebook, width, self.seed)
        self.finish_init()

    def setup(self, stage: str) -> None:
        """Refuse what cannot be fitted.

        Raises:
            MusiccmError: Several processes, or windows off the grid of tokens.
        """
        if self.trainer.world_size > 1:
            raise MusiccmError("trainer.devices: one process fits a semantic tokenizer; set devices and num_nodes to 1")
        data = self.trainer.datamodule
        token_count(data.clip_samples, data.sample_rate_hz)

    def configure_optimizers(self) -> Any:
        """One that counts steps, as the trainer ends by them; the centroids have no gradients for it."""
        return torch.optim.SGD([self.part.centroids_KD], lr=0.0)

    def features(self, batch: WaveformBatch) -> Tensor:
        """Features of a batch's windows, [B, L, F]."""
        source = self._source[0].to(self.device)
        return source(batch.waveform_BS, self.trainer.datamodule.sample_rate_hz)

    def training_step(self, batch: WaveformBatch, batch_idx: int) -> dict[str, Any]:
        """Measure a batch, or move the centroids by it.

        Returns:
            `watched`, which must stay finite: from the second batch of the clusters on, its distance to them.
        """
        features_NF, watched = self.features(batch).flatten(0, 1), {}
        if self.global_step < self.statistics_steps:
            self.fitter.measure(features_NF)
        else:
            distance = self.fitter.fit(features_NF)
            if distance is not None:
                watched["distance"] = torch.tensor(distance)
                self.log("train/distance", distance, prog_bar=True)
            self._take()
        self.optimizers().step()  # type: ignore[union-attr]
        return {"watched": watched}

    def _take(self) -> None:
        for name, tensor in self.fitter.tensors().items():
            getattr(self.part, name).copy_(tensor)

    @torch.no_grad()
    def validation_step(self, batch: WaveformBatch, batch_idx: int) -> None:
        """Measure a held-out batch, once there are clusters."""
        if self.fitter.started:
            super().validation_step(batch, batch_idx)

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Tokens of held-out clips, how far their features lie from them, and what the clips are said to have."""
        features_BLF = self.features(batch)
        ids_BL = self.part.encode(features_BLF)
        x_BLD = self.part.standardise(features_BLF)
        error_B = (x_BLD - self.part.vectors(ids_BL)).square().sum(2).mean(1)
        spread_B = x_BLD.square().sum(2).mean(1)
        return {"ids_BL": ids_BL, "error_B": error_B, "spread_B": spread_B, "attributes": batch.attributes}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Share of the features' variance that tokens do not keep, how many are used, and purity by attribute."""
        ids_NL, error_N, spread_N = (torch.cat([m[key] for m in measured]) for key in ("ids_BL", "error_B", "spread_B"))
        shares = torch.bincount(ids_NL.flatten(), minlength=self.part.codebook).double()
        shares /= shares.sum()
        quality: dict[str, Any] = {
            "n": len(ids_NL),
            "distortion": (error_N.double().mean() / spread_N.double().mean()).item(),
            "used": int((shares > 0).sum()),
            "perplexity": torch.special.entr(shares).sum().exp().item(),
        }
        attributes = [labels for m in measured for labels in m["attributes"]]
        for name in sorted({name for labels in attributes for name in labels}):
            labels = [each.get(name) for each in attributes]
            # what nearly every clip has a value of its own for, such as a seed, is no class
            if None not in labels and 1 < len(set(labels)) <= len(labels) // 4:
                quality[f"purity_{name}"], quality[f"purity_{name}_chance"] = purity(ids_NL, labels)
        return quality

    def save(self) -> None:
        """Write `semantic_tokenizer/`.

        Raises:
            MusiccmError: The run ended before there were clusters.
        """
        if not self.fitter.started:
            raise MusiccmError(f"trainer.max_steps: {self.trainer.max_steps} batches were all measured; expected more "
                               f"than statistics_steps, {self.statistics_steps}")
        save_part(self.bundle, TOKENIZER, self.part)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "source_fingerprint": self._source[0].fingerprint}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clusters' state beside what every stage keeps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["codebook"] = self.fitter.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the clusters' state up again."""
        super().on_load_checkpoint(checkpoint)
        self.fitter.load_state_dict(checkpoint["codebook"])


def purity(ids_NL: Tensor, labels: Sequence[str | None]) -> tuple[float, float]:
    """How well tokens tell what their clip has: the share of tokens whose clip has the label most frequent with them.

    Args:
        ids_NL: Tokens of clips.
        labels: One label a clip.

    Returns:
        The share, and that of the most frequent label of all, which one token alone would have.
    """
    names = {label: place for place, label in enumerate(sorted(set(map(str, labels))))}
    label_N = torch.tensor([names[str(label)] for label in labels])
    label_X = label_N.repeat_interleave(ids_NL.shape[1])
    pairs = Counter(zip(ids_NL.cpu().flatten().tolist(), label_X.tolist(), strict=True))
    best: dict[int, int] = {}
    for (token, _), count in pairs.items():
        best[token] = max(best.get(token, 0), count)
    return sum(best.values()) / ids_NL.numel(), max(Counter(labels).values()) / len(labels)
