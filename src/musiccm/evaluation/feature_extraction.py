"""Waveforms to features: a clip is embedded once, and every metric is taken from that."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from musiccm.embedders.base import Embedder, Embeddings
from musiccm.errors import MusiccmError


class Features(NamedTuple):
    """Features of a batch of clips.

    Args:
        embeddings: What each network gives, by its name.
        clap_BD: CLAP's audio embeddings, `[B, D]`; None without CLAP.
        text_audio_BD: Those of another CLAP, where text-audio similarity is measured by one; None for `clap_BD`.
    """

    embeddings: dict[str, Embeddings]
    clap_BD: Tensor | None
    text_audio_BD: Tensor | None = None


class FeatureExtractor(nn.Module):
    """Several networks that embed the same waveforms: embedders, and CLAP's audio tower.

    Args:
        embedders: Networks with different names; metrics are named after them.
        clap_audio: `(waveform_BS, sample_rate_hz) -> [B, D]`; None for no CLAP.
        sample_rate_hz: Rate of the waveforms.

    Raises:
        MusiccmError: Two embedders of one name, or a name that is no key.
    """

    def __init__(
        self,
        embedders: Sequence[Embedder],
        clap_audio: Callable[[Tensor, int], Tensor] | None,
        sample_rate_hz: int,
    ) -> None:
        super().__init__()
        names = [embedder.name for embedder in embedders]
        check_names(names)
        self.embedders = nn.ModuleDict(dict(zip(names, embedders, strict=True))).eval()
        self.clap_audio = clap_audio
        self.sample_rate_hz = sample_rate_hz

    @property
    def tagger(self) -> Embedder | None:
        """The network whose outputs state attributes: the first with `groups`; None without one.

        One that says itself what clips ask for (`asked`, such as `events`) comes before others.
        """
        with_groups = [embedder for embedder in self.embedders.values() if getattr(embedder, "groups", None)]
        with_groups.sort(key=lambda embedder: not hasattr(embedder, "asked"))
        return next(iter(with_groups), None)

    @property
    def groups(self) -> dict[str, Any]:
        """The tagger's outputs by attribute, such as `{"drums": [0, 1]}`, or `Reading`s; empty without a tagger."""
        return dict(getattr(self.tagger, "groups", {}))

    @property
    def tags(self) -> list[str]:
        """Names of the tagger's outputs, `group:value` where they state an attribute."""
        return list(getattr(self.tagger, "tags", []))

    @torch.no_grad()
    def embed(self, waveform_BS: Tensor, sample_rate_hz: int | None = None) -> dict[str, Embeddings]:
        """Embed, without CLAP.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate, where it is not the extractor's.

        Returns:
            Name of each network to what it gives.

        Raises:
            MusiccmError: A network gave other numbers of rows than it says, or than there are clips.
        """
        embedded: dict[str, Embeddings] = {}
        for name, embedder in self.embedders.items():
            embedded[name] = found = embedder(waveform_BS, sample_rate_hz or self.sample_rate_hz)
            clips = len(waveform_BS)
            logits = clips if found.logits_BG is None else len(found.logits_BG)
            if (len(found.counts), logits, sum(found.counts)) != (clips, clips, len(found.embedding_RE)):
                raise MusiccmError(
                    f"embedder {name}: expected counts and logits of {clips} clips and rows that add up, found "
                    f"{len(found.counts)} counts of {sum(found.counts)} rows, {len(found.embedding_RE)} rows and "
                    f"{logits} logits"
                )
        return embedded

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, sample_rate_hz: int | None = None) -> Features:
        """Embed a batch.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate, where it is not the extractor's.

        Returns:
            Its features, float32.
        """
        rate_hz = sample_rate_hz or self.sample_rate_hz
        clap = None if self.clap_audio is None else self.clap_audio(waveform_BS, rate_hz).float()
        return Features(self.embed(waveform_BS, rate_hz), clap)

    def classifies(self, device: torch.device | str = "cpu") -> dict[str, bool]:
        """Which networks give logits: each embeds the shortest tone that all of them take.

        Args:
            device: Where the networks are.

        Returns:
            Name to whether it classifies.
        """
        longest_s = max((embedder.min_duration_s for embedder in self.embedders.values()), default=0.0)
        samples = math.ceil(longest_s * self.sample_rate_hz) + 1
        tone = torch.sin(torch.arange(samples, device=device) * (2 * math.pi * 440 / self.sample_rate_hz))
        return {name: found.logits_BG is not None and getattr(self.embedders[name], "classifies", True)
                for name, found in self.embed(tone[None]).items()}

    def wanted(self, attributes: Sequence[Mapping[str, str]]) -> Tensor:
        """Which of the tagger's outputs each clip's attributes ask for.

        Args:
            attributes: What is known for certain of each clip.

        Returns:
            Multi-hot tags, `[B, G]`, on the CPU.
        """
        if (asked := getattr(self.tagger, "asked", None)) is not None:
            return asked(attributes)
        tags = self.tags
        stated = [{f"{group}:{value}" for group, value in clip.items()} for clip in attributes]
        return torch.tensor([[float(tag in clip) for tag in tags] for clip in stated]).view(len(stated), -1)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be part of a key, or that occur twice.

    Args:
        names: Names of networks.

    Raises:
        MusiccmError: Such a name.
    """
    bad = [name for name in names if not re.fullmatch(r"[a-z0-9_]+", name)]
    if bad or len(set(names)) != len(names):
        raise MusiccmError(
            f"embedders: expected different names of lower-case letters, digits and underscores, found {list(names)}"
        )
