"""A tagger of sections: which instrument and which drums each part of a clip of the world of events has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.augment import Degradation, degrade
from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.batch import WaveformBatch
from musiccm.data.demo.events.world import DRUMS, INSTRUMENTS
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.sections import GROUPS, section_window, told_sections, told_values, values_of
from musiccm.models.tagger import Tagger
from musiccm.systems.ranges import check_ranges
from musiccm.systems.stages.base import Stage


class SectionTaggerStage(Stage):
    """Trains a tagger on single sections of clips, for the embedder `events`.

    A tagger of whole pieces meets no drums alone, and no two strokes in silence.

    Args:
        tagger: `TaggerConfig` fields, without `tags`.
        trunk: A bundle whose tagger this one begins with, all but its outputs; it must have the same shape. None starts
            from nothing.
        mel: Mel front end.
        degradation: How training clips are degraded, see `TaggerStage`.
        **stage: Arguments of `Stage`.
    """

    stage = "sections"
    part_name = "evaluators/sections"
    part: Tagger

    def __init__(
        self,
        tagger: dict[str, Any] | None = None,
        trunk: str | None = None,
        mel: MelConfig | None = None,
        degradation: Degradation | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.mel, self.degradation = LogMel(mel or MelConfig()), degradation or Degradation()
        check_ranges("model.init_args.degradation.", vars(self.degradation), share="share",
                     finite="floor_low floor_high", not_negative="gain blur_bins blur_frames grain")
        tags = [f"instrument:{name}" for name in INSTRUMENTS] + [f"drums:{style}" for style in ("none", *DRUMS)]
        self.part = Tagger({**(tagger or {}), "tags": tags})
        if trunk is not None:
            begin_with(self.part, trunk)
        self.values = values_of(self.part)
        self.finish_init()

    def windows(self, mel_BMN: Tensor, batch: WaveformBatch) -> tuple[Tensor, Tensor, list[int]]:
        """The sections of a batch's clips, what sounds in each, and which clip each is of.

        Raises:
            MusiccmError: The clips' labels do not say.
        """
        mels, told, clips = [], [], []
        for clip, labels in enumerate(batch.attributes or [{}] * len(batch)):
            sections = told_sections(labels)
            if sections is None:
                raise MusiccmError(f"clip {batch.ids[clip]}: its labels do not say what sounds when; expected those of "
                                   "the demo's world of events (musiccm prepare demo --world events)")
            for place, section in enumerate(sections):
                mels.append(section_window(mel_BMN[clip: clip + 1], len(sections), place))
                told.append(told_values(section, self.values))
                clips.append(clip)
        return torch.cat(mels), torch.tensor(told, device=mel_BMN.device), clips

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of instrument and drums, where there are any."""
        mel_BMN = degrade(self.mel(batch.waveform_BS), self.degradation, generator)
        windows_WMN, told_WK, _ = self.windows(mel_BMN, batch)
        _, logits_WG = self.part(windows_WMN)
        parts = {
            group: F.cross_entropy(logits_WG[:, self.part.groups[group]], told_WK[:, place], ignore_index=-1)
            for place, group in enumerate(GROUPS)
        }
        return torch.stack(list(parts.values())).sum(), parts

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Which sections of held-out clips are told rightly, and how many clips are in all sections."""
        windows_WMN, told_WK, clips = self.windows(self.mel(batch.waveform_BS), batch)
        _, logits_WG = self.best(windows_WMN)
        heard_WK = torch.stack([logits_WG[:, self.part.groups[group]].argmax(dim=1) for group in GROUPS], dim=1)
        right_WK = (heard_WK == told_WK) | (told_WK == -1)
        wrong = {clip for clip, right in zip(clips, right_WK.all(dim=1).tolist(), strict=True) if not right}
        right_B = torch.tensor([clip not in wrong for clip in range(len(batch))])
        return {"right_WK": right_WK, "asked_WK": told_WK != -1, "right_B": right_B}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy by group over sections, and over clips of all sections at once."""
        right_WK, asked_WK, right_B = (torch.cat([m[key] for m in measured])
                                       for key in ("right_WK", "asked_WK", "right_B"))
        quality: dict[str, Any] = {"n": len(right_B), "accuracy_order": right_B.double().mean().item()}
        for place, group in enumerate(GROUPS):
            quality[f"accuracy_{group}"] = right_WK[asked_WK[:, place], place].double().mean().item()
        return quality

    def save(self) -> None:
        """Write `evaluators/sections/`."""
        save_part(self.bundle, "evaluators/sections", self.best)


def begin_with(tagger: Tagger, bundle: str) -> None:
    """Copy all but the outputs of a bundle's tagger into another.

    Raises:
        MusiccmError: It has another shape.
    """
    found = Bundle.from_pretrained(bundle, ["evaluators/tagger"]).evaluators["tagger"].state_dict()
    mine = tagger.state_dict()
    kept = {name: value for name, value in found.items() if not name.startswith("head.")}
    if other := [name for name, value in kept.items() if name not in mine or mine[name].shape != value.shape]:
        raise MusiccmError(f"model.init_args.trunk: the tagger of {bundle} is of another shape ({other[0]}); state its "
                           "shape in model.init_args.tagger, or leave trunk out")
    tagger.load_state_dict(kept, strict=False)
