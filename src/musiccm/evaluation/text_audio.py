"""The CLAP that measures text-audio similarity: a network of the evaluation, not the one that conditions the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.embedders.clap_sources import NONE, check_not_tuned_by, load_clap
from musiccm.embedders.frozen import fingerprint
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
        name: `bundle_clap`, or of another what asked for it: `clap_second`, `clap`, a file, a bundle.
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

    def record(self) -> dict[str, str]:
        """Its name and the hash of its weights and preprocessing, for the results.

        Returns:
            `text_audio` and `text_audio_fingerprint`.
        """
        found = self.fingerprint
        if found is None:
            conditioner: Any = self.network
            found = fingerprint((conditioner.clap,), {"name": self.name})
        return {"text_audio": self.name, "text_audio_fingerprint": found}

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
        weights: `clap` for LAION's published file in `MUSICCM_WEIGHTS`, `clap_second` for the bundle's second CLAP, a
            bundle, a file, a folder or a hub id, as `load_clap` takes them; `none` for no CLAP; None for the bundle's.

    Returns:
        It; None for `none`, and with a warning where the bundle has none and no other is asked for.

    Raises:
        MusiccmError: The one that was asked for cannot be had.
    """
    if weights is None:
        found = bundle_clap(bundle)
        if found is None:
            log.warning("evaluation: %s", without_clap(bundle))
        return found
    if weights == NONE:
        return None
    try:
        embedder: Any = load_clap(weights, bundle)
    except MusiccmError as error:
        raise MusiccmError(f"evaluation.text_audio: {error}") from error

    def audio(waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        return embedder(waveform_BS, sample_rate_hz).embedding_RE  # one row a clip

    return MeasuringClap(embedder.text, audio, embedder, str(weights), embedder.fingerprint)


def refuse_tuned(measuring: MeasuringClap | None, system: Any, embedders: Iterable[Any] = ()) -> None:
    """Refuse a CLAP that measures a student which is trained on it; warn of distances in its features.

    Args:
        measuring: The CLAP that measures, or None.
        system: Whose student is measured; one that is trained on a CLAP has it as `tuning_clap`.
        embedders: The networks that distances are named after.

    Raises:
        MusiccmError: The two have the same weights.
    """
    tuning = getattr(system, "tuning_clap", None)
    if tuning is None:
        return
    if measuring is not None:
        network: Any = measuring.network  # a conditioner, or an embedder with one
        check_not_tuned_by("evaluation.text_audio", getattr(network, "conditioner", network), tuning)
    for embedder in embedders:
        conditioner = getattr(embedder, "conditioner", None)
        if conditioner is not None and tuning.same_network(conditioner):
            log.warning("evaluation.embedders: %s is the CLAP that the student is trained on; distances in its "
                        "features fall with the training more than those of other networks", embedder.name)


def without_clap(bundle: Bundle, asked: str | Path | None = None) -> str:
    """What the metrics lack without a CLAP, in a sentence."""
    if asked == NONE:
        return "text-audio similarity is left out, as text_audio says"
    return (f"text-audio similarity is left out: {bundle.path.name} brings no CLAP with text and audio; name one "
            "by text_audio")
