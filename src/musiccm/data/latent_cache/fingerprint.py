"""Hashes that say what a cache was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from musiccm.data.corpora.labels import Clip
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle

# What conditions come out of; the last is CLAP's alone.
TEXT_PARTS = ("text_encoder", "tokenizer", "feature_extractor")


def encoding_parts(bundle: Bundle) -> tuple[str, ...]:
    """The parts that latents and their conditions come out of."""
    return (bundle.kind.autoencoder, *(TEXT_PARTS[:-1] if bundle.gives_tokens else TEXT_PARTS))


def bundle_fingerprint(bundle: Bundle) -> str:
    """Hash of the configurations and weights that encode audio and text, and of the mel settings.

    Args:
        bundle: The bundle; parts that it borrows are read from its base.

    Returns:
        32 hexadecimal digits, the same wherever the bundle lies.

    Raises:
        MusiccmError: One of the parts is missing.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = encoding_parts(bundle)
    for part in parts:
        folder = bundle.root_of(part)
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
    digest.update(json.dumps(bundle.settings.get("mel"), sort_keys=True).encode())
    return digest.hexdigest()


def joint_fingerprint(bundle: Bundle) -> str:
    """Hash of a bundle's CLAP, and of what it reads texts and sounds with.

    Args:
        bundle: The bundle; parts that it borrows are read from its base.

    Raises:
        MusiccmError: It has no CLAP, or one without a part.
    """
    if bundle.gives_tokens:
        raise MusiccmError(f"{bundle.path}: its text encoder embeds no audio; semantic tokens are planned from a "
                           "CLAP's embedding, so name a bundle with one")
    return bundle.content_hash(TEXT_PARTS)


def clips_fingerprint(clips: Sequence[Clip]) -> str:
    """Hash of the captions and the decoded audio of clips, by its hash from the scan; their folder does not enter."""
    digest = hashlib.blake2b(digest_size=16)
    for clip in clips:
        record = [clip.id, clip.captions, asdict(clip.audio)]
        digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
