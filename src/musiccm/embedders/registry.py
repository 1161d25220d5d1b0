"""Embedders by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from musiccm.embedders.frozen import FrozenEmbedder
from musiccm.embedders.weights import PUBLISHED, find_weights, load_checkpoint
from musiccm.errors import MusiccmError, reason

if TYPE_CHECKING:
    from musiccm.models.bundle import Bundle

NAMES = (*PUBLISHED, "tagger", "events")
OF_BUNDLES = ("tagger", "events")
#: Those that classify, which IS and KL need.
CLASSIFIERS = ("pann", "pann32k", "tagger")


def load_embedder(
    name: str,
    weights: str | Path | None = None,
    bundle: Bundle | str | Path | None = None,
    device: str | torch.device = "cpu",
) -> FrozenEmbedder:
    """Load an embedder.

    Args:
        name: `pann`, `pann32k`, `vgg`, `clap`, `clap_music`, `clap_music_1s`, `audiomae`, `tagger` or `events`.
        weights: The published file, or a folder with it. For `clap` also a folder or hub id (`owner/name`) in
            transformers' layout, or a file on the hub (`owner/name/file.pt`). None looks in the folder that
            `MUSICCM_WEIGHTS` names.
        bundle: Where `tagger`, `events`, and `clap` without `weights`, come from. That CLAP is called
            `bundle_clap`.
        device: Where it computes.

    Returns:
        The embedder, frozen.

    Raises:
        MusiccmError: The name is unknown, or the weights are missing, damaged or of another network.

    Examples:
        >>> from musiccm import load_embedder
        >>> tagger = load_embedder("tagger", bundle="musiccm-tiny")
        >>> tagger(torch.zeros(2, 81920), 16000).embedding_RE.shape
        torch.Size([2, 128])
    """
    if name not in NAMES:
        raise MusiccmError(f"embedder '{name}': expected one of {', '.join(NAMES)}")
    if name in OF_BUNDLES or (name == "clap" and weights is None and bundle is not None):
        embedder = _of_bundle(name, bundle)
    elif name == "clap" and weights is not None and (hub := _on_hub(weights)) is not None:
        embedder = _clap_of_folder(hub) if hub.count("/") == 1 else _of_file(name, _from_hub(hub))
    elif name == "clap" and weights is not None and (Path(weights) / "config.json").is_file():
        embedder = _clap_of_folder(str(weights))
    else:
        embedder = _of_file(name, weights)
    if torch.device(device).type == "cpu":
        embedder.for_cpu()
    return embedder.to(device)


def _of_bundle(name: str, bundle: Any) -> FrozenEmbedder:
    """The bundle's tagger or CLAP."""
    from musiccm.models.bundle import Bundle

    if bundle is None:
        raise MusiccmError(f"embedder '{name}': it comes with a bundle; give one: a folder, a packaged name or a hub "
                           "id")
    part = {"tagger": "evaluators/tagger", "events": "evaluators/sections"}.get(name, "text_encoder")
    parts = [part] if name in OF_BUNDLES else [part, "tokenizer", "feature_extractor"]
    opened = bundle if isinstance(bundle, Bundle) else Bundle.from_pretrained(bundle, parts)
    if name == "tagger":
        from musiccm.embedders.tagger import TaggerEmbedder

        embedder: FrozenEmbedder = TaggerEmbedder(opened.evaluators["tagger"], opened.mel)
    elif name == "events":
        from musiccm.embedders.events import EventsEmbedder

        embedder = EventsEmbedder(opened.evaluators["sections"], opened.mel)
    else:
        from musiccm.embedders.clap import ClapEmbedder

        embedder = ClapEmbedder(opened.conditioner(), "bundle_clap")
    embedder.provenance = {"bundle": opened.path.name, "content_hash": opened.content_hash(parts), "published": None}
    return embedder


def _of_file(name: str, weights: str | Path | None) -> FrozenEmbedder:
    """From a published file."""
    path, provenance = find_weights(name, weights)
    checkpoint = load_checkpoint(path)
    embedder: FrozenEmbedder
    if name in ("pann", "pann32k"):
        from musiccm.embedders.cnn14 import PannEmbedder

        embedder = PannEmbedder(name, checkpoint, str(path))
    elif name == "vgg":
        from musiccm.embedders.vggish import VggishEmbedder

        embedder = VggishEmbedder(checkpoint, str(path))
    elif name == "audiomae":
        from musiccm.embedders.audiomae import AudioMaeEmbedder

        embedder = AudioMaeEmbedder(checkpoint, where=str(path))
    else:
        from musiccm.embedders.clap import (
            ClapEmbedder,
            SlidingClapEmbedder,
            conditioner_from_laion,
            require_music_clap,
        )

        conditioner = conditioner_from_laion(checkpoint, where=str(path))
        if name != "clap":
            require_music_clap(conditioner, name, path)
        embedder = (SlidingClapEmbedder if name == "clap_music_1s" else ClapEmbedder)(conditioner, name)
    embedder.provenance = provenance
    return embedder


def _clap_of_folder(folder: str) -> FrozenEmbedder:
    from musiccm.embedders.clap import ClapEmbedder, conditioner_from_folder

    embedder = ClapEmbedder(conditioner_from_folder(folder))
    local = Path(folder).is_dir()
    embedder.provenance = {"folder" if local else "hub": Path(folder).name if local else folder, "published": None}
    return embedder


def _on_hub(weights: str | Path) -> str | None:
    """`owner/name` or `owner/name/file.pt` where nothing of that name is here."""
    text = str(weights)
    if Path(weights).exists() or text.startswith((".", "/", "~")):
        return None
    is_file = text.endswith((".pt", ".pth"))
    return text if text.count("/") == (2 if is_file else 1) else None


def _from_hub(hub: str) -> Path:
    from huggingface_hub import hf_hub_download

    repository, file = hub.rsplit("/", 1)
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "could not be had"
        raise MusiccmError(f"'{hub}': no such file here, and the hub could not give it ({reason(error)}); "
                           "check the path or the network") from error
