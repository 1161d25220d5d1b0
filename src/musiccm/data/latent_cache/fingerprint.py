"""Hashes that say what a cache was made from."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from musiccm.data.corpora.labels import Clip
from musiccm.diffusion import gives_tokens
from musiccm.errors import MusiccmError
from musiccm.texts import read_json

# The parts that latents and their conditions come out of; the last is CLAP's alone.
ENCODING_PARTS = ("vae", "text_encoder", "tokenizer", "feature_extractor")


def bundle_folder(bundle: str | Path) -> Path | None:
    """The folder of a bundle given by path or packaged name; None for anything else, such as a hub id."""
    if Path(bundle).is_dir():
        return Path(bundle)
    packaged = Path(str(importlib.resources.files("musiccm"))) / "bundles" / str(bundle).removeprefix("musiccm-")
    return packaged if str(bundle).startswith("musiccm-") and packaged.is_dir() else None


def caches_tokens(folder: Path) -> bool:
    """Whether the captions of a bundle's latent cache are tokens, by its text encoder, and not CLAP's vectors."""
    config = folder / "text_encoder" / "config.json"
    return config.is_file() and gives_tokens(read_json(config, "the text encoder's configuration"))


def bundle_fingerprint(folder: Path) -> str:
    """Hash of the configurations and weights that encode audio and text, and of the mel settings.

    Args:
        folder: The bundle.

    Returns:
        32 hexadecimal digits, the same wherever the bundle lies.

    Raises:
        MusiccmError: One of the parts is missing.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = ENCODING_PARTS[:-1] if caches_tokens(folder) else ENCODING_PARTS
    for part in parts:
        files = sorted(
            f for f in (folder / part).glob("*")
            if f.suffix in (".safetensors", ".txt", ".model") or (f.suffix == ".json" and f.name != "quality.json")
        )
        if not files:
            raise MusiccmError(f"{folder / part}: no such part; latents need {', '.join(parts)} in the bundle")
        for file in files:
            digest.update(f"{part}/{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    settings = folder / "musiccm.json"
    mel = read_json(settings, "a bundle's settings").get("mel") if settings.is_file() else None
    digest.update(json.dumps(mel, sort_keys=True).encode())
    return digest.hexdigest()


def clips_fingerprint(clips: Sequence[Clip]) -> str:
    """Hash of the captions and the decoded audio of clips, by its hash from the scan; their folder does not enter."""
    digest = hashlib.blake2b(digest_size=16)
    for clip in clips:
        record = [clip.id, clip.captions, asdict(clip.audio)]
        digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
