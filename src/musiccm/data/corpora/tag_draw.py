"""Which tags are frequent, and a draw of clips that is even over them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from musiccm.errors import MusiccmError


def tag_counts(clips: Iterable[Collection[str]], tags: Sequence[str]) -> dict[str, int]:
    """How many clips have each of `tags`, in their order."""
    counts = Counter(tag for clip in clips for tag in clip)
    return {tag: counts[tag] for tag in tags}


def top_tags(counts: Mapping[str, int], count: int = 50) -> list[str]:
    """The most frequent tags, most frequent first; ties in the order of `counts`, without tags that never occur."""
    return [tag for tag, n in sorted(counts.items(), key=lambda item: -item[1])[:count] if n]


def draw_even(clips: Mapping[str, Collection[str]], tags: Sequence[str], count: int, seed: int) -> set[str]:
    """Draw clips so that every tag occurs as equally often as their overlaps allow.

    Each turn goes to the tag that has the fewest clips so far and takes its next one, in an order that depends on
    (seed, id) alone: adding clips to the corpus changes as little of the draw as can be. (MusicCM, arXiv 2404.13358,
    section 4.1, draws 5,000 clips of MagnaTagATune evenly over its top-50 tags, without saying how.)

    Args:
        clips: The tags of each clip, by id.
        tags: The tags that count; clips without any are never drawn.
        count: How many clips to draw.
        seed: Decides which.

    Returns:
        The ids.

    Raises:
        MusiccmError: There are fewer clips with such tags than `count`.
    """
    wanted = set(tags)
    candidates = {name: wanted.intersection(own) for name, own in clips.items() if wanted.intersection(own)}
    if len(candidates) < count:
        raise MusiccmError(f"draw: {count} clips asked for, but only {len(candidates)} have one of the {len(tags)} "
                           "most frequent tags; lower draw, or leave it out to take every clip")
    # Backwards, as pop() takes from the end.
    order = sorted(candidates, key=lambda name: _hash(seed, name), reverse=True)
    queues = {tag: [name for name in order if tag in candidates[name]] for tag in tags}
    drawn: set[str] = set()
    counts = dict.fromkeys(tags, 0)
    while len(drawn) < count:
        tag = min((tag for tag in tags if queues[tag]), key=counts.__getitem__)
        name = queues[tag].pop()
        if name not in drawn:
            drawn.add(name)
            for own in candidates[name]:
                counts[own] += 1
    return drawn


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()
