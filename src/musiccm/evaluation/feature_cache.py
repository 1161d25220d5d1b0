"""Features that need not be made again, a teacher's and the floor's, while nothing that they rest on has changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

import musiccm
from musiccm.device import device_name
from musiccm.errors import MusiccmError
from musiccm.evaluation.clip_features import ClipFeatures, read_about, read_features, write_features
from musiccm.models.bundle import Bundle
from musiccm.similarity.clap_windows import CLAP_PARTS

log = logging.getLogger(__name__)

# The code that decides what the features of a clip are.
SOURCES = ("audio", "data/demo", "diffusion", "models", "samplers", "embedders",
           *(f"evaluation/{name}.py" for name in ("candidates", "clip_features", "distilled", "evaluator",
                                                  "feature_extraction", "floor", "text_audio")))
LIBRARIES = ("torch", "diffusers", "transformers")
#: Folder of a bundle that holds features of its teacher and of the floor.
PACKED = "evaluation_features"


def teacher_hash(bundle: Bundle) -> str:
    """A hash of what makes latents of captions: parts, and what `musiccm.json` says of how they are used."""
    found, kind = bundle.content_hash(bundle.kind.teaching), bundle.kind
    own = {key: bundle.settings[key] for key in kind.settings if key in bundle.settings}
    return _hash({"parts": found, **own}) if own else found


def clap_hash(bundle: Bundle) -> str:
    """A hash of the bundle's CLAP, whose audio embeddings are kept too."""
    return bundle.content_hash(CLAP_PARTS)


def decoder_hashes(bundle: Bundle) -> dict[str, str]:
    """A hash of what makes sound of latents, by the decoder's name; the encoder, which makes the floor's, is in it."""
    return {name: bundle.content_hash(bundle.kind.decoding[name]) for name in bundle.decoders}


@cache
def source_digest(root: Path = Path(musiccm.__file__).parent) -> str:
    """A hash of the code that makes and embeds samples, and of the versions of the libraries that it runs on.

    Args:
        root: The package.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(repr([(name, version(name)) for name in LIBRARIES]).encode())
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """What a latency was measured on.

    Args:
        device: Where the networks were.

    Returns:
        Processor or accelerator, threads and torch version.
    """
    return {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


class Found(NamedTuple):
    """Features that were kept.

    Args:
        features: Of the clips that were asked for.
        calls: Network calls a clip; None where they were not counted.
        source: `cache` or `bundle`.
    """

    features: ClipFeatures
    calls: float | None
    source: str


class FeatureCache:
    """Files of features, each under a hash of what it depends on; what was kept of more clips serves for fewer.

    Two places are looked into: a bundle's own folder, whose features came with its weights and are those that any
    version makes of them up to rounding; and a folder that is filled here, whose files depend on the code as well.

    Args:
        folder: What is filled; None keeps nothing.
        packed: A bundle's `evaluation_features`; None for none.

    Raises:
        MusiccmError: The folder is a file.
    """

    def __init__(self, folder: Path | None, packed: Path | None = None) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise MusiccmError(f"{folder}: expected a folder for the features that are kept, found a file; "
                               "move it away")
        self.folder, self.packed = folder, packed

    def path(self, key: Mapping[str, Any]) -> Path | None:
        """The file of a key, whether or not it exists; None without a folder."""
        return None if self.folder is None else self.folder / f"{_hash({'source': source_digest(), **key})}.safetensors"

    def get(self, key: Mapping[str, Any], ids: Sequence[str], told: Sequence[int]) -> Found | None:
        """Look features up.

        Args:
            key: What they depend on beside the clips, plain JSON values.
            ids: Of the clips.
            told: The `prompt_hash` of each.

        Returns:
            They; None where not all of these clips, asked for with the same, were kept.
        """
        if self.packed is not None:
            found = self._read(self.packed / packed_name(key), key, ids, told, "bundle")
            if found is not None:
                return found
        path = self.path(key)
        return None if path is None else self._read(path, key, ids, told, "cache")

    def put(
        self, key: Mapping[str, Any], features: ClipFeatures, told: Sequence[int], calls: float | None
    ) -> None:
        """Keep features.

        Args:
            key: What they depend on.
            features: They.
            told: The `prompt_hash` of each clip.
            calls: Network calls a clip.
        """
        if (path := self.path(key)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            features, hashes = _with_kept(path, features, list(told))
            write_features(path, features, hashes, {"key": key, "calls": calls})

    def _read(
        self, path: Path, key: Mapping[str, Any], ids: Sequence[str], told: Sequence[int], source: str
    ) -> Found | None:
        if not path.is_file():
            return None
        try:
            about = read_about(path)
            if about.get("key") != json.loads(json.dumps(key)):
                return None
            features, hashes = read_features(path)
        except MusiccmError as error:
            log.warning("evaluation: %s; its clips are made again", error)  # costs time, not truth
            return None
        known = dict(zip(features.ids, hashes, strict=True))
        if any(known.get(name) != asked for name, asked in zip(ids, told, strict=True)):
            return None
        return Found(features.of(ids), about.get("calls"), source)


def _with_kept(path: Path, features: ClipFeatures, hashes: list[int]) -> tuple[ClipFeatures, list[int]]:
    """New features with those of other clips that the file has: a table of few clips must not cost those of many."""
    if not path.is_file():
        return features, hashes
    try:
        kept, kept_hashes = read_features(path)
    except MusiccmError:
        return features, hashes
    known = dict(zip(kept.ids, kept_hashes, strict=True)) | dict(zip(features.ids, hashes, strict=True))
    others = kept.of([name for name in kept.ids if name not in set(features.ids)])
    whole = ClipFeatures.of_ranks([features, others])
    return whole, [known[name] for name in whole.ids]


def packed_name(key: Mapping[str, Any]) -> str:
    """Name of a file of a bundle's own features: what it is of, and enough of its key to have it for itself."""
    return f"{key.get('model', 'floor')}_{key.get('steps', 0)}_{key['decoder']}_{_hash(key)[:8]}.safetensors"


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
