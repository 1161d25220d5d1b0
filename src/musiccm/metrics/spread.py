"""Spread: how different the clips are that many noises give for one caption."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import TooFewClips, require_rows
from musiccm.metrics.jackknife import Interval, Ratio, mean_interval, ratio_of_means


class Spread(NamedTuple):
    """The spread of one model, caption by caption.

    Args:
        captions: Each caption to the mean cosine distance of two of its clips.
    """

    captions: Mapping[Hashable, float]

    def interval(self) -> Interval:
        """The mean over captions and its interval: another draw of captions would give another mean."""
        return mean_interval(np.array(list(self.captions.values())))

    def ratio(self, other: Spread) -> Ratio:
        """The ratio to another's mean, over the same captions.

        Args:
            other: The denominator, such as the teacher's, or that of real clips.

        Returns:
            The ratio and its interval.

        Raises:
            MusiccmError: Other captions.
        """
        if set(self.captions) != set(other.captions):
            raise MusiccmError(f"spread: expected the same captions for a ratio, found {len(self.captions)} and "
                               f"{len(other.captions)}, "
                               f"{len(set(self.captions) ^ set(other.captions))} in one of the two only")
        return ratio_of_means(np.array(list(self.captions.values())),
                              np.array([other.captions[caption] for caption in self.captions]))


def spread(embedding_ND: Tensor, captions: Sequence[Hashable]) -> Spread:
    """Mean cosine distance of two clips of one caption from different noises, for each caption.

    The mean over pairs is unbiased for two clips a caption and for many, so that sets of different numbers compare; a
    real clip and another rendering of it are such a set.

    Args:
        embedding_ND: One row a clip, `[N, D]`.
        captions: The caption of each clip, N of them, or what stands for it.

    Returns:
        The spread.

    Raises:
        TooFewClips: Fewer than two captions, or a caption with a single clip.
        MusiccmError: Rows and captions that do not match, rows that are not finite, or a row of zeros.
    """
    require_rows("spread", embedding_ND, [str(caption) for caption in captions])
    rows = embedding_ND.detach().cpu().double()
    lengths = rows.norm(dim=1, keepdim=True)
    if len(rows) and not bool((lengths > 0).all()):
        raise MusiccmError(f"spread: expected embeddings with a direction, found {int((lengths == 0).sum())} of zeros")
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, caption in enumerate(captions):
        places[caption].append(place)
    alone = [caption for caption, found in places.items() if len(found) < 2]
    if len(places) < 2 or alone:
        raise TooFewClips(f"spread: expected at least 2 captions with at least 2 clips each, found {len(places)}, "
                          f"{len(alone)} of them with one" + (f", first {alone[0]!r}" if alone else ""))
    unit = rows / lengths
    found = {}
    for caption, mine in places.items():
        count = len(mine)
        # |sum of unit rows|^2 = count + 2 * sum of the cosines of pairs
        squared = float(unit[mine].sum(dim=0).square().sum())
        found[caption] = 1 - (squared - count) / (count * (count - 1))
    return Spread(found)
