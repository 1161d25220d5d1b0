"""The networks whose ears the figures are named after."""

from musiccm.metrics.embedders.base import Embedder, Heard

__all__ = ["Embedder", "Heard"]
