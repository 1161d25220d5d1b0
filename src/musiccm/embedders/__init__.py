"""The networks that metrics are named after."""

from musiccm.embedders.base import Embedder, Embeddings
from musiccm.embedders.registry import load_embedder

__all__ = ["Embedder", "Embeddings", "load_embedder"]
