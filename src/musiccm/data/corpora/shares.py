"""How many clips of each corpus a figure is taken over: shares that are fixed before any clip turns out to be bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from musiccm.data.corpora.labels import Clip


class Part(NamedTuple):
    """One corpus' clips of a split.

    Args:
        name: Of the corpus.
        clips: Those that can be used, in order.
        asked: Clips that the corpus or the experiment states, the bad ones among them.
    """

    name: str
    clips: list[Clip]
    asked: int


def share_out(asked: Sequence[int], limit: int) -> list[int]:
    """Divide a number in proportion, by largest remainders.

    Args:
        asked: What each would have without a limit.
        limit: What they have together, at most.

    Returns:
        Whole numbers, none above what is asked; together `limit`, or everything where that is less.
    """
    total = sum(asked)
    if limit >= total:
        return list(asked)
    shares = [number * limit // total for number in asked]
    by_remainder = sorted(range(len(asked)), key=lambda n: (-(asked[n] * limit % total), n))
    for n in by_remainder[: limit - sum(shares)]:
        shares[n] += 1
    return shares


def limited(parts: Sequence[Part], limit: int | None) -> list[Part]:
    """The first clips of each corpus, as many as its share of the limit.

    A share that a corpus cannot fill stays short: no other corpus' clips take the place.

    Args:
        parts: The corpora.
        limit: Clips of all corpora together, at most; None for all.

    Returns:
        The parts, each with its share as `asked`.
    """
    if limit is None:
        return list(parts)
    shares = share_out([part.asked for part in parts], limit)
    return [Part(part.name, part.clips[:share], share) for part, share in zip(parts, shares, strict=True)]
