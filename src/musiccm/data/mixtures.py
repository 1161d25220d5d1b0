"""Mixtures: two clips at once under a caption of both, as TANGO and ConsistencyTTA train on them (arXiv 2304.13731)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from musiccm.audio import AudioFacts, BadAudio, Conversion
from musiccm.audio.mixing import mix
from musiccm.audio.windows import PEAK, key_hash, keyed_generator, level, read_window
from musiccm.data.batch import WaveformBatch
from musiccm.data.corpora.labels import Clip
from musiccm.data.latent_cache.window_index import window_starts
from musiccm.data.waveforms import collate_waveforms
from musiccm.errors import MusiccmError

# Below so many pairs all of them are put in order; above, numbers are drawn until enough are different.
_FEW = 1 << 16


def mixed_caption(first: str, second: str) -> str:
    """The caption of a mixture: `A dog barks and rain falls`."""
    return f"{first} and {second[:1].lower()}{second[1:]}"


def mixture_id(first: str, second: str) -> str:
    """The id of a mixture of two clips."""
    return f"{first}+{second}"


def draw_pairs(size: int, count: int, *key: int | str) -> list[tuple[int, int]]:
    """Draw pairs of different items, no two of which are in two pairs together; either of a pair may come first.

    Args:
        size: Items.
        count: Pairs; no more than there are.
        *key: What decides the draw.

    Returns:
        The pairs.
    """
    total, generator = math.comb(size, 2), keyed_generator(*key)
    if total <= max(_FEW, 4 * count):
        every = list(combinations(range(size), 2))
        pairs = [every[n] for n in torch.randperm(total, generator=generator)[:count].tolist()]
    else:
        found: dict[tuple[int, int], None] = {}
        while len(found) < count:
            drawn_N2 = torch.randint(size, (count, 2), generator=generator)
            found |= dict.fromkeys((min(pair), max(pair)) for pair in drawn_N2.tolist() if pair[0] != pair[1])
        pairs = list(found)[:count]
    turned = torch.randint(2, (len(pairs),), generator=generator).tolist()
    return [(j, i) if turn else (i, j) for (i, j), turn in zip(pairs, turned, strict=True)]


class MixingCollate:
    """Stacks items of `WaveformWindows` into a training batch, and mixtures of some of them behind.

    Which are mixed follows from (seed, epoch, ids) of the batch: the same in any worker, and in a run that goes on.

    Args:
        share: Mixtures for each other item; half of a batch's number is ConsistencyTTA's.
        batch_size: Items in a batch.
        sample_rate_hz: Rate of the windows.
        seed: Seed of the draws.

    Raises:
        MusiccmError: A batch gives no mixture, or has not so many pairs.
    """

    def __init__(self, share: float, batch_size: int, sample_rate_hz: int, seed: int = 0) -> None:
        self.count, self.sample_rate_hz, self.seed = int(batch_size * share), sample_rate_hz, seed
        if not 1 <= self.count <= math.comb(batch_size, 2):
            raise MusiccmError(f"data.mixtures is {share}: expected between 1 and {math.comb(batch_size, 2)} mixtures "
                               f"in a batch of {batch_size}, found {self.count}; raise data.batch_size, or change it")

    def __call__(self, items: Sequence[dict | BadAudio]) -> WaveformBatch | BadAudio:
        """Make a batch.

        Args:
            items: Of `WaveformWindows`, in training.

        Returns:
            The batch; the first error among the items takes its place.
        """
        read: list[dict[str, Any]] = [item for item in items if isinstance(item, dict)]
        if len(read) == len(items):
            drawn = [f"{item['epoch']}:{item['id']}" for item in read]
            pairs = draw_pairs(len(read), self.count, self.seed, "mixtures", *drawn)
            read += [self._mixed(read[i], read[j]) for i, j in pairs]
            return collate_waveforms(read)
        return collate_waveforms(items)

    def _mixed(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        both = (first["waveform_S"], second["waveform_S"])
        stated = first["attributes"].items() & second["attributes"].items()
        return {
            "waveform_S": level(mix(*both, self.sample_rate_hz)),
            "tags_G": torch.maximum(first["tags_G"], second["tags_G"]),
            "id": mixture_id(first["id"], second["id"]),
            "caption": mixed_caption(first["caption"], second["caption"]),
            "attributes": dict(sorted(stated)),
            "start_s": first["start_s"],
        }


@dataclass(frozen=True)
class MixedClip(Clip):
    """Two clips at once, as a latent cache holds them: one window, however many the others have.

    Args:
        parts: The clips.
        starts: First sample of the window of each, at the rate of the cache.
    """

    parts: tuple[Clip, ...] = ()
    starts: tuple[int, ...] = ()

    def read(self, clip_samples: int, sample_rate_hz: int, conversion: Conversion | None = None) -> torch.Tensor:
        """Read the parts and mix them.

        Args:
            clip_samples: Samples in a window.
            sample_rate_hz: Their rate.
            conversion: How files are read.

        Returns:
            The window, `[clip_samples]`.

        Raises:
            BadAudio: A file changed since it was scanned.
        """
        first, second = (read_window(part.path, part.audio, clip_samples, sample_rate_hz, start, conversion)
                         for part, start in zip(self.parts, self.starts, strict=True))
        return level(mix(first, second, sample_rate_hz))


def mixed_clips(
    clips: Sequence[Clip], share: float, clip_samples: int, sample_rate_hz: int, windows_per_track: int
) -> list[MixedClip]:
    """Mixtures of a corpus' training clips, for its latent cache.

    They follow from the clips alone, and not from the seed of a run: runs of several seeds read one cache.

    Args:
        clips: The clips.
        share: Mixtures for each of them.
        clip_samples: Samples in a window.
        sample_rate_hz: Their rate.
        windows_per_track: Windows of each clip in the cache, one of which is mixed.

    Returns:
        The mixtures. Of clips with several captions, the first ones are joined, the second ones, and so on.

    Raises:
        MusiccmError: There are fewer pairs than mixtures, or the share gives none.
    """
    count = int(len(clips) * share)
    if share and clips and not count:
        raise MusiccmError(f"data.mixtures is {share}: expected at least 1 mixture of {len(clips)} training clips, "
                           f"found 0; raise it to {1 / len(clips):.3g} or more, or set it to 0 for none")
    if count > math.comb(len(clips), 2):
        raise MusiccmError(f"data.mixtures is {share}: {len(clips)} training clips have {math.comb(len(clips), 2)} "
                           f"pairs, and {count} are asked for; lower it")
    found = []
    for i, j in draw_pairs(len(clips), count, "mixtures", len(clips)):
        parts = (clips[i], clips[j])
        name, rounds = mixture_id(clips[i].id, clips[j].id), range(max(len(part.captions) for part in parts))
        planned = [window_starts(part, clip_samples, sample_rate_hz, windows_per_track) for part in parts]
        starts = tuple(own[key_hash(name, "window", n) % len(own)] for n, own in enumerate(planned))
        digest = hashlib.blake2b("+".join(part.audio.digest for part in parts).encode(), digest_size=16).hexdigest()
        said = [mixed_caption(*(part.captions[k % len(part.captions)] for part in parts)) for k in rounds]
        found.append(MixedClip(
            name, "", list(dict.fromkeys(said)), sorted({*parts[0].tags, *parts[1].tags}), {},
            AudioFacts(clip_samples, sample_rate_hz, 1, 0.0, PEAK, digest), {}, parts, starts,
        ))
    return found
