"""The tagger: multi-label classification of mels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.augment import Degradation, degrade
from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import save_part
from musiccm.models.tagger import Tagger
from musiccm.systems.ranges import check_ranges
from musiccm.systems.stages.base import Stage


def group_accuracy(logits_BG: Tensor, tags_BG: Tensor, columns: list[int]) -> tuple[float, int]:
    """Share of clips whose highest logit among a group's columns is the true tag, over the clips with exactly one.

    Args:
        logits_BG: the tagger's outputs.
        tags_BG: multi-hot truth.
        columns: the group's columns.

    Returns:
        The accuracy (NaN without clips) and the number of clips it is taken over.
    """
    truth = tags_BG[:, columns]
    known = truth.sum(dim=1) == 1
    hits = logits_BG[known][:, columns].argmax(dim=1) == truth[known].argmax(dim=1)
    return hits.double().mean().item(), int(known.sum())


class TaggerStage(Stage):
    """Trains the tagger with binary cross-entropy on windows of a labelled corpus.

    The tags are those of the corpus (the data module's vocabulary), in its order.

    Args:
        tagger: `TaggerConfig` fields, without `tags`.
        mel: mel front end.
        degradation: how training clips are degraded. A tagger that only knows clean renderings takes a codec's blur for
            another instrument.
        **stage: arguments of `Stage`.
    """

    stage = "tagger"
    part_name = "evaluators/tagger"
    part: Tagger

    def __init__(
        self,
        tagger: dict[str, Any] | None = None,
        mel: MelConfig | None = None,
        degradation: Degradation | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.mel = LogMel(mel or MelConfig())
        self.config, self.degradation = dict(tagger or {}), degradation or Degradation()
        check_ranges("model.init_args.degradation.", vars(self.degradation), share="share",
                     finite="floor_low floor_high", not_negative="gain blur_bins blur_frames grain")
        self.built = False

    def setup(self, stage: str) -> None:
        """Build the tagger, once the corpus has told its tags."""
        if self.built:
            return
        data = self.trainer.datamodule
        if data.vocabulary is None:
            raise MusiccmError(f"{data.root}: the label files name neither tags nor attributes; a tagger needs them")
        self.part = Tagger({**self.config, "tags": list(data.vocabulary.names)})
        self.finish_init()
        self.built = True

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, averaged over tags."""
        mel_BMN = degrade(self.mel(batch.waveform_BS), self.degradation, generator)
        _, logits_BG = self.part(mel_BMN)
        return F.binary_cross_entropy_with_logits(logits_BG, batch.tags_BG), {}

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Logits of held-out clips."""
        _, logits_BG = self.best(self.mel(batch.waveform_BS))
        return {"logits_BG": logits_BG, "tags_BG": batch.tags_BG}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Cross-entropy, and accuracy by group."""
        logits_BG, tags_BG = (torch.cat([m[key] for m in measured]) for key in ("logits_BG", "tags_BG"))
        quality: dict[str, Any] = {
            "n": len(logits_BG),
            "bce": F.binary_cross_entropy_with_logits(logits_BG, tags_BG).item(),
        }
        for group, columns in self.part.groups.items():
            accuracy, known = group_accuracy(logits_BG, tags_BG, columns)
            if known:
                quality[f"accuracy_{group}"] = accuracy
        return quality

    def save(self) -> None:
        """Write `evaluators/tagger/`."""
        save_part(self.bundle, "evaluators/tagger", self.best)
