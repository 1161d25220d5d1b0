"""Hashes that say what a cache was made from."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from musiccm.data.corpora.labels import Clip
from musiccm.errors import MusiccmError
from musiccm.texts import read_json

# The parts that latents and their conditions come out of.
ENCODING_PARTS = ("vae", "text_encoder", "tokenizer", "feature_extractor")


def bundle_folder(bundle: str | Path) -> Path | None:
    """The folder of a bundle given by path or packaged name; None for anything else, such as a hub id."""
    if Path(bundle).is_dir():
        return Path(bundle)
    packaged = Path(str(importlib.resources.files("musiccm"))) / "bundles" / str(bundle).removeprefix("musiccm-")
    return packaged if str(bundle).startswith("musiccm-") and packaged.is_dir() else None


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
    for part in ENCODING_PARTS:
        files = sorted(
            f for f in (folder / part).glob("*")
            if f.suffix in (".safetensors", ".txt") or (f.suffix == ".json" and f.name != "quality.json")
        )
        if not files:
            raise MusiccmError(f"{folder / part}: no such part; latents need {', '.join(ENCODING_PARTS)} in the bundle")
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
