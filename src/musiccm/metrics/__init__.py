"""Metrics over clips that were embedded once; each returns its n, and no clip counts twice."""

from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.coverage import Coverage
from musiccm.metrics.extrapolated import FrechetInfinity
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.inception import InceptionScore
from musiccm.metrics.jackknife import Interval, jackknife
from musiccm.metrics.kernel import KernelDistance
from musiccm.metrics.kl import KLDivergence
from musiccm.metrics.mauve import Mauve
from musiccm.metrics.real_audio import RealAudioSimilarity
from musiccm.metrics.text_audio import TextAudioSimilarity

__all__ = [
    "AttributeAccuracy",
    "Coverage",
    "FrechetDistance",
    "FrechetInfinity",
    "InceptionScore",
    "Interval",
    "KernelDistance",
    "KLDivergence",
    "Mauve",
    "RealAudioSimilarity",
    "TextAudioSimilarity",
    "jackknife",
]
