"""Semantic tokens: the nearest of some k-means centroids to standardised features, 25 a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.local_models import local_bundle
from musiccm.models.bundle.untrusted import check_folder
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder
from musiccm.models.melody.features import FeatureSource

#: Its folder in a bundle.
TOKENIZER = "semantic_tokenizer"


@dataclass
class SemanticTokenizerConfig:
    """What a tokenizer is.

    Args:
        source: Which features, a key of `musiccm.models.melody.features.SOURCES`.
        source_fingerprint: Of the network that gives them.
        layer: Which of its layers; None for its default.
        features: Width of a feature vector.
        codebook: How many tokens there are.
        width: Width of a centroid: that of the principal components that are kept, or `features` where all stay as they
            are.
        licence: Of the features, where it binds what is made with them.
    """

    source: str
    source_fingerprint: str
    features: int
    codebook: int
    width: int
    layer: int | None = None
    licence: str | None = None


class SemanticTokenizer(nn.Module):
    """Features to token ids, and ids to vectors.

    A feature vector x is standardised, `(x - mean) / std`, perhaps projected to its principal components, and gets the
    number of the centroid that is nearest. The vector of an id is that centroid.

    Args:
        config: What it is, as an object or a mapping.
        source: What gives the features; None for a tokenizer that only turns ids into vectors.
    """

    mean_F: Tensor
    std_F: Tensor
    projection_FD: Tensor | None
    centroids_KD: Tensor

    def __init__(
        self, config: SemanticTokenizerConfig | Mapping[str, Any], source: FeatureSource | None = None
    ) -> None:
        super().__init__()
        self.config = c = make_config(SemanticTokenizerConfig, config)
        self.register_buffer("mean_F", torch.zeros(c.features))
        self.register_buffer("std_F", torch.ones(c.features))
        projected = c.width != c.features
        self.register_buffer("projection_FD", torch.zeros(c.features, c.width) if projected else None)
        self.register_buffer("centroids_KD", torch.zeros(c.codebook, c.width))
        # A list, as its weights are no part of this one's.
        self._source: list[FeatureSource] = []
        if source is not None:
            self.use(source)

    @property
    def codebook(self) -> int:
        """How many tokens there are."""
        return self.config.codebook

    @property
    def width(self) -> int:
        """Width of a token's vector."""
        return self.config.width

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and the numbers: what caches and language models of its tokens are held to."""
        digest = hashlib.blake2b(json.dumps(asdict(self.config), sort_keys=True).encode(), digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def has_source(self) -> bool:
        """Whether it can make tokens of sound."""
        return bool(self._source)

    @property
    def source(self) -> FeatureSource:
        """What gives the features.

        Raises:
            MusiccmError: There is none.
        """
        if not self._source:
            raise MusiccmError(f"semantic tokenizer: was read without the {self.config.source} that it takes features "
                               "of; give it one (`use`) to make tokens of sound")
        return self._source[0]

    def use(self, source: FeatureSource) -> None:
        """Take features from a source.

        Raises:
            MusiccmError: It is not the one that the codebook was fitted to.
        """
        c = self.config
        found = (source.name, source.layer, source.width)
        if found != (c.source, c.layer, c.features):
            raise MusiccmError(f"semantic tokenizer: was fitted to features (name, layer, width) of "
                               f"{(c.source, c.layer, c.features)}, found {found}")
        if source.fingerprint != c.source_fingerprint:
            raise MusiccmError(f"semantic tokenizer: was fitted to another {c.source} (fingerprint "
                               f"{c.source_fingerprint}, found {source.fingerprint}); name the bundle or folder whose "
                               "features it was fitted to, or fit it again")
        self._source = [source.to(self.mean_F.device)]

    def standardise(self, features_BLF: Tensor) -> Tensor:
        """Standardised and projected features, [..., D]."""
        x = (features_BLF.float() - self.mean_F) / self.std_F
        return x if self.projection_FD is None else x @ self.projection_FD

    def encode(self, features_BLF: Tensor) -> Tensor:
        """Ids of features, int64, of any leading shape."""
        x = self.standardise(features_BLF).flatten(0, -2)
        # |x - c|^2 without |x|^2, which is the same for all c
        scores = x @ self.centroids_KD.T - self.centroids_KD.square().sum(1) / 2
        return scores.argmax(dim=1).view(features_BLF.shape[:-1])

    @torch.no_grad()
    def ids(self, waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        """Tokens of sound.

        Args:
            waveform_BS: Waveforms of a whole number of tokens.
            sample_rate_hz: Their rate.

        Returns:
            Ids [B, L], int64, 25 a second.

        Raises:
            MusiccmError: The length is not on the grid, or the tokenizer has no source.
        """
        source = self.source
        if next(source.parameters()).device != self.mean_F.device:
            source.to(self.mean_F.device)
        return self.encode(source(waveform_BS.to(self.mean_F.device), sample_rate_hz))

    def vectors(self, ids_BL: Tensor) -> Tensor:
        """The centroids of ids.

        Args:
            ids_BL: Ids, of any shape.

        Returns:
            [..., D], float32: `Condition.tokens_BLD` of what renders them.

        Raises:
            MusiccmError: An id is not of this codebook.
        """
        check_ids(ids_BL, self.codebook)
        return self.centroids_KD[ids_BL.to(self.centroids_KD.device).long()]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; the source's weights stay where they are."""
        save_weights_folder(folder, {"_class_name": "SemanticTokenizer", **asdict(self.config)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, source: FeatureSource | None = None) -> SemanticTokenizer:
        """Read a folder written by `save_pretrained`.

        Args:
            folder: The folder.
            source: What gives the features, see `load_source`.

        Raises:
            MusiccmError: A file is missing, the two do not belong together, or the source is another one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MusiccmError(f"{folder}: no semantic tokenizer here; fit one (experiments/melody/stages/"
                               "semantic_tokens.yaml)")
        check_folder(folder, folder)
        tokenizer = cls(make_config(SemanticTokenizerConfig, read_config(folder), f"{folder}/config.json"))
        load_weights(tokenizer, folder)
        if source is not None:
            tokenizer.use(source)
        return tokenizer.eval()


def tokenizer_of(bundle: str | Path) -> SemanticTokenizer:
    """The tokenizer of a bundle on this disk, without its source.

    Raises:
        MusiccmError: There is no such bundle, or it has none.
    """
    folder = local_bundle(bundle)
    if folder is None:
        raise MusiccmError(f"{bundle}: no bundle here; expected a folder with {TOKENIZER}/")
    return SemanticTokenizer.from_pretrained(folder / TOKENIZER)


def check_ids(ids: Tensor, codebook: int) -> None:
    """Refuse token ids that a codebook does not have.

    Raises:
        MusiccmError: Naming the id.
    """
    if ids.is_floating_point() or ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < codebook:
        found = ids.dtype if ids.is_floating_point() else f"{int(ids.min())} to {int(ids.max())}"
        raise MusiccmError(f"semantic tokens: expected ids from 0 to {codebook - 1}, found {found}; they are of "
                           "another tokenizer")
