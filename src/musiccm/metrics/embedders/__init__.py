"""The networks whose ears the figures are named after."""

from musiccm.metrics.embedders.base import Embedder, Heard
from musiccm.metrics.embedders.registry import load_embedder

__all__ = ["Embedder", "Heard", "load_embedder"]
