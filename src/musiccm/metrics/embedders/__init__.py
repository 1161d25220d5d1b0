"""The networks whose ears the figures are named after."""

from musiccm.metrics.embedders.base import Embedder, Heard
from musiccm.metrics.embedders.tagger import TaggerEmbedder

__all__ = ["Embedder", "Heard", "TaggerEmbedder"]
