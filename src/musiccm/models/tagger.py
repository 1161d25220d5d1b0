"""A small multi-label tagger of mels: it stands where PANN stands for large models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder


@dataclass
class TaggerConfig:
    """Shape of a tagger.

    Args:
        tags: Names of the outputs, in order; `group:value` names form groups.
        n_mels: Mel bins of the input.
        stem_widths: Channels of the three two-dimensional convolutions.
        width: Channels of the temporal convolutions.
        dilations: Dilation of each temporal convolution, in frames of four times the mel's hop. The default sees 2.5 s,
            four beats at 96 bpm.
        embedding_width: Width of the embedding.
        dropout: On the embedding, in training.
        mel_mean: Subtracted from the mel.
        mel_std: Divides the mel.
    """

    tags: list[str] = field(default_factory=list)
    n_mels: int = 64
    stem_widths: list[int] = field(default_factory=lambda: [8, 24, 48])
    width: int = 96
    dilations: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    embedding_width: int = 128
    dropout: float = 0.1
    mel_mean: float = -5.0
    mel_std: float = 3.0

    def groups(self) -> dict[str, list[int]]:
        """Group name to the output columns of its tags; tags without a colon are in no group."""
        columns: dict[str, list[int]] = {}
        for column, tag in enumerate(self.tags):
            if ":" in tag:
                columns.setdefault(tag.split(":", 1)[0], []).append(column)
        return columns


class _TemporalBlock(nn.Module):
    """Residual dilated convolution over time."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x_BWM: Tensor) -> Tensor:
        return x_BWM + self.conv(F.relu(self.norm(x_BWM)))


class Tagger(nn.Module):
    """Convolutional tagger for clips of any length.

    Frequency is reduced more than time, for onsets and tempo live in time: three 2-D convolutions halve the bins three
    times and the frames twice, dilated 1-D convolutions follow, and mean, maximum and standard deviation over time
    are pooled side by side (rhythm shows in the spread, which a mean cannot see). The embedding is taken after a ReLU,
    as PANN's fc1 is.

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: If the configuration names no tag.
    """

    def __init__(self, config: TaggerConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = c = make_config(TaggerConfig, config)
        if not c.tags:
            raise MusiccmError("tagger: 'tags' is empty; expected the names of the outputs")
        first, second, third = c.stem_widths
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, (3, 7), stride=2, padding=(1, 3)), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1), nn.BatchNorm2d(second), nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, stride=(1, 2), padding=1), nn.BatchNorm2d(third), nn.ReLU(inplace=True),
        )
        bins = c.n_mels
        for _ in range(3):
            bins = (bins + 1) // 2
        self.fold = nn.Conv1d(third * bins, c.width, 1)
        self.temporal = nn.Sequential(*[_TemporalBlock(c.width, dilation) for dilation in c.dilations])
        self.norm = nn.BatchNorm1d(c.width)
        self.embed = nn.Linear(3 * c.width, c.embedding_width)
        self.dropout = nn.Dropout(c.dropout)
        self.head = nn.Linear(c.embedding_width, len(c.tags))

    @property
    def tags(self) -> list[str]:
        """Names of the outputs."""
        return self.config.tags

    @property
    def groups(self) -> dict[str, list[int]]:
        """Group name to output columns."""
        return self.config.groups()

    def forward(self, mel_BMN: Tensor) -> tuple[Tensor, Tensor]:
        """Classify.

        Args:
            mel_BMN: Natural-log mel, of any number of frames.

        Returns:
            embedding_BD, non-negative, and logits_BG.

        Raises:
            MusiccmError: If the mel has another number of bins.
        """
        x = self.time_map(mel_BMN)
        std = (x.var(dim=-1, unbiased=False) + 1e-5).sqrt()
        pooled = torch.cat([x.mean(-1), x.amax(-1), std], dim=1)
        embedding = F.relu(self.embed(pooled))
        return embedding, self.head(self.dropout(embedding))

    def time_map(self, mel_BMN: Tensor) -> Tensor:
        """What is pooled over time: one vector for four mel frames.

        Args:
            mel_BMN: Natural-log mel.

        Returns:
            [B, width, ceil(M / 4)], non-negative, float32.

        Raises:
            MusiccmError: If the mel has another number of bins.
        """
        if mel_BMN.shape[-1] != self.config.n_mels:
            raise MusiccmError(f"tagger: expected {self.config.n_mels} mel bins, found {mel_BMN.shape[-1]}")
        x = ((mel_BMN - self.config.mel_mean) / self.config.mel_std).unsqueeze(1)
        x = self.stem(x).transpose(2, 3).flatten(1, 2)
        return F.relu(self.norm(self.temporal(self.fold(x)))).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_weights_folder(folder, {"_class_name": "Tagger", **asdict(self.config)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tagger:
        """Read a folder written by `save_pretrained`; the tagger comes in eval mode.

        Raises:
            MusiccmError: If a file is missing or the two do not belong together.
        """
        tagger = cls(make_config(TaggerConfig, read_config(folder), f"{folder}/config.json"))
        load_weights(tagger, folder)
        return tagger.eval()
