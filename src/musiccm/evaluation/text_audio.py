"""The CLAP that measures text-audio similarity: a network of the evaluation, not the one that conditions the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.embedders import load_embedder
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuringClap:
    """Embeds captions and waveforms in one space.

    Args:
        text: `captions -> [B, D]`.
        audio: `(waveform_BS, sample_rate_hz) -> [B, D]`.
        network: What does so.
        name: `bundle_clap`, or `clap` for another.
        fingerprint: Hash of weights and preprocessing, for caches; None for the bundle's, whose own hash says it.
    """

    text: Callable[[list[str]], Tensor]
    audio: Callable[[Tensor, int], Tensor]
    network: nn.Module
    name: str
    fingerprint: str | None = None

    @property
    def of_bundle(self) -> bool:
        """Whether it is the bundle's, whose embeddings of the training clips are known."""
        return self.fingerprint is None

    def to(self, device: torch.device | str) -> MeasuringClap:
        """Move the network."""
        self.network.to(device)
        return self


def bundle_clap(bundle: Bundle) -> MeasuringClap | None:
    """The bundle's CLAP.

    Args:
        bundle: The bundle.

    Returns:
        It, with the very weights that a model of the bundle is conditioned by; None where the bundle's text encoder is
        no CLAP, or has no audio tower.
    """
    if not bundle.has("text_encoder"):
        return None
    conditioner: Any = bundle.conditioner()
    if not conditioner.has_audio:
        return None
    return MeasuringClap(conditioner.text, conditioner.audio, conditioner, "bundle_clap")


def measuring_clap(bundle: Bundle, weights: str | Path | None = None) -> MeasuringClap | None:
    """The CLAP that measures.

    Args:
        bundle: Whose CLAP is taken unless another is asked for.
        weights: `clap` for LAION's published file in `MUSICCM_WEIGHTS`, else a file, a folder or a hub id, as
            `load_embedder` takes them; None for the bundle's.

    Returns:
        It; None, with a warning, where the bundle has none and no other is asked for.

    Raises:
        MusiccmError: The one that was asked for cannot be had.
    """
    if weights is None:
        found = bundle_clap(bundle)
        if found is None:
            log.warning("evaluation: %s", without_clap(bundle))
        return found
    try:
        embedder: Any = load_embedder("clap", None if weights == "clap" else weights)
    except MusiccmError as error:
        raise MusiccmError(f"evaluation.text_audio: {error}") from error

    def audio(waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        return embedder(waveform_BS, sample_rate_hz).embedding_RE  # one row a clip

    return MeasuringClap(embedder.text, audio, embedder, embedder.name, embedder.fingerprint)


def without_clap(bundle: Bundle) -> str:
    """What the metrics lack without a CLAP, in a sentence."""
    return (f"text-audio similarity is left out: {bundle.path.name} brings no CLAP with text and audio; name one "
            "by text_audio")
