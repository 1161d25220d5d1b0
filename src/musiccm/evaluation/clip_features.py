"""Features of a set of clips, which metrics are taken from: in memory, and as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiccm.columns import StringColumn
from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError, reason
from musiccm.evaluation.feature_extraction import Features
from musiccm.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class ClipFeatures:
    """Features of some clips, clip after clip.

    Args:
        ids: Their ids, each once.
        networks: What each network gives, by its name; float32, on the CPU.
        clap_ND: CLAP's audio embeddings; None without CLAP.
        text_audio_ND: Those of the CLAP that measures, where it is another one; else None.
    """

    ids: list[str]
    networks: dict[str, Embeddings]
    clap_ND: Tensor | None = None
    text_audio_ND: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: Sequence[tuple[Sequence[str], Features]]) -> ClipFeatures:
        """Join batches.

        Args:
            parts: Ids and features of each.

        Returns:
            All of them; without any clip an empty set, which knows no network.
        """
        ids = [clip_id for names, _ in parts for clip_id in names]
        found = [features for _, features in parts]
        names = list(found[0].embeddings) if found else []
        networks = {name: _joined([features.embeddings[name] for features in found]) for name in names}
        return cls(ids, networks, _cat([features.clap_BD for features in found]),
                   _cat([features.text_audio_BD for features in found]))

    @classmethod
    def of_ranks(cls, parts: Sequence[ClipFeatures]) -> ClipFeatures:
        """Join the clips of all ranks, sorted by id; a rank without clips adds none."""
        given = [part for part in parts if part.ids]
        whole = cls.joined([(part.ids, Features(part.networks, part.clap_ND, part.text_audio_ND)) for part in given])
        return whole.of(sorted(whole.ids))

    def of(self, ids: Sequence[str]) -> ClipFeatures:
        """Some of the clips, in the order that is asked for.

        Args:
            ids: Theirs.

        Raises:
            KeyError: One that is not among the clips.
        """
        places = {clip_id: place for place, clip_id in enumerate(self.ids)}
        chosen = torch.tensor([places[clip_id] for clip_id in ids], dtype=torch.long)
        networks = {name: _chosen(found, chosen) for name, found in self.networks.items()}
        clap = None if self.clap_ND is None else self.clap_ND[chosen]
        text_audio = None if self.text_audio_ND is None else self.text_audio_ND[chosen]
        return ClipFeatures(list(ids), networks, clap, text_audio)

    def batches(self, size: int) -> Iterator[tuple[list[str], Features]]:
        """The clips in batches, as they were given to `joined`."""
        for start in range(0, len(self), size):
            part = self.of(self.ids[start : start + size])
            yield part.ids, Features(part.networks, part.clap_ND, part.text_audio_ND)


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor.float().cpu() for tensor in tensors if tensor is not None]
    return torch.cat(given) if given else None


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    rows = torch.cat([part.embedding_RE.float().cpu() for part in parts])
    return Embeddings(rows, [count for part in parts for count in part.counts],
                      _cat([part.logits_BG for part in parts]))


def _chosen(found: Embeddings, clips: Tensor) -> Embeddings:
    logits = None if found.logits_BG is None else found.logits_BG[clips]
    counts = [found.counts[clip] for clip in clips.tolist()]
    if len(found.embedding_RE) == len(found.counts):  # a row a clip
        return Embeddings(found.embedding_RE[clips], counts, logits)
    rows = found.embedding_RE.split(found.counts)
    return Embeddings(torch.cat([rows[clip] for clip in clips.tolist()]) if counts else found.embedding_RE[:0],
                      counts, logits)


def prompt_hash(prompt: str, tokens: Sequence[int] | None = None) -> int:
    """63 bits by which a file knows what a clip was asked for with.

    Args:
        prompt: Its caption.
        tokens: Semantic tokens that the model was told beside it; None for none.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8)
    if tokens is not None:
        digest.update(b"\0" + json.dumps(list(tokens)).encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def write_features(
    path: Path, features: ClipFeatures, prompts: Sequence[str | int], about: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write features as one safetensors file, whole or not at all.

    Args:
        path: The file.
        features: What to write.
        prompts: The caption of each clip, or its `prompt_hash`.
        about: What the features depend on, and what else is to be kept; plain JSON values.
        dtype: Type of the numbers in the file.
    """
    from safetensors.torch import save_file

    names = StringColumn.pack(features.ids)
    tensors = {
        "ids": torch.from_numpy(names.data_X.copy()), "id_ends": torch.from_numpy(names.ends_N1.copy()),
        "prompts": torch.tensor(
            [prompt if isinstance(prompt, int) else prompt_hash(prompt) for prompt in prompts], dtype=torch.int64),
    }
    for name, found in features.networks.items():
        tensors[f"{name}/embedding"] = found.embedding_RE.to(dtype).contiguous()
        tensors[f"{name}/counts"] = torch.tensor(found.counts, dtype=torch.int32)
        if found.logits_BG is not None:
            tensors[f"{name}/logits"] = found.logits_BG.to(dtype).contiguous()
    for name, rows in (("clap", features.clap_ND), ("text_audio", features.text_audio_ND)):
        if rows is not None:
            tensors[name] = rows.to(dtype).contiguous()
    metadata = {"format": str(FORMAT), "about": json.dumps(about, sort_keys=True), "digest": _digest(tensors)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_about(path: Path) -> dict[str, Any]:
    """What a file of features was written with, without reading the features.

    Args:
        path: The file.

    Returns:
        `about` of `write_features`.

    Raises:
        MusiccmError: It is no such file, or of another format.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        about = json.loads(metadata["about"])
    except Exception as error:  # a broken file shows as whatever the reader tripped over
        raise MusiccmError(f"{path}: not a readable file of features ({reason(error)}); remove it") from error
    if metadata.get("format") != str(FORMAT):
        raise MusiccmError(f"{path}: expected features of format {FORMAT}, found {metadata.get('format')}; remove it")
    return about


def read_features(path: Path) -> tuple[ClipFeatures, list[int]]:
    """Read features.

    Args:
        path: The file.

    Returns:
        They, float32, and the `prompt_hash` of each clip's caption.

    Raises:
        MusiccmError: It is no such file, or its numbers are not those that were written.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("digest")
        ids = list(StringColumn(tensors["ids"].numpy(), tensors["id_ends"].numpy().astype(np.int64)))
        names = [key.removesuffix("/embedding") for key in tensors if key.endswith("/embedding")]
        networks = {name: Embeddings(tensors[f"{name}/embedding"].float(), tensors[f"{name}/counts"].tolist(),
                                     _float(tensors.get(f"{name}/logits"))) for name in names}
        prompts = tensors["prompts"].tolist()
    except Exception as error:  # as above
        raise MusiccmError(f"{path}: not a readable file of features ({reason(error)}); remove it") from error
    if written not in (None, _digest(tensors)):  # None: of an earlier version, which wrote none
        raise MusiccmError(f"{path}: its numbers are not those that were written to it (damaged); remove it")
    return ClipFeatures(ids, networks, _float(tensors.get("clap")), _float(tensors.get("text_audio"))), prompts


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of all numbers of a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
