"""Where samplers get fresh noise from."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

NoiseFn: TypeAlias = Callable[[int], Tensor]
"""`noise_fn(step) -> eps_BCTF`, the fresh noise that is added after step 0, 1, ..."""

INITIAL = -1
"""The step index of the initial noise, before any step."""


def sample_noise(seeds: Sequence[int], shape_CTF: Sequence[int], step: int = INITIAL) -> Tensor:
    """Noise that depends on each sample's own seed and the step alone.

    A sample so seeded comes out the same whatever batch it is in and whatever device the network runs on: the draws are
    made on the CPU.

    Args:
        seeds: one seed a sample.
        shape_CTF: shape of one sample.
        step: `INITIAL`, or the step after which the noise is added.

    Returns:
        Standard normal float32 noise `[B, C, T, F]` on the CPU.
    """
    return torch.stack([_draw(f"{int(seed)}/{step}", shape_CTF) for seed in seeds])


def _draw(key: str, shape: Sequence[int]) -> Tensor:
    # A hash keeps (seed 0, step 1) apart from (seed 1, step 0), as sums of the two would not.
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


class FrameNoise:
    """Noise of a piece of any length, keyed by absolute position: a frame has the same noise however it is asked for.

    Drawn in blocks as long as a clip; the first block is `sample_noise`'s, so that a piece of one clip's length is that
    very clip.

    Args:
        seed: Of the piece.
        shape_CTF: Shape of one clip.
    """

    def __init__(self, seed: int, shape_CTF: Sequence[int]) -> None:
        self.seed = int(seed)
        self.shape_CTF = tuple(shape_CTF)

    def __call__(self, step: int, first: int, last: int) -> Tensor:
        """Noise of frames `first` to before `last`.

        Args:
            step: `INITIAL`, or the step after which the noise is added.
            first: First frame of the piece.
            last: The frame behind the last one.

        Returns:
            Standard normal float32 noise `[C, last - first, F]` on the CPU.
        """
        block = self.shape_CTF[1]
        index = range(first // block, -(-last // block))
        drawn = torch.cat([self._block(step, i) for i in index], dim=1) if index else torch.empty(self.shape_CTF)
        offset = first - first // block * block
        return drawn[:, offset : offset + last - first]

    def _block(self, step: int, index: int) -> Tensor:
        return _draw(f"{self.seed}/{step}" + (f"/{index}" if index else ""), self.shape_CTF)


class SectionNoise:
    """Noise of a piece whose sections have seeds of their own; where all are equal, it is `FrameNoise`'s.

    Args:
        seeds: One a section.
        starts: First frame of each section, ascending, the first at 0.
        shape_CTF: Shape of one clip.
    """

    def __init__(self, seeds: Sequence[int], starts: Sequence[int], shape_CTF: Sequence[int]) -> None:
        self.shape_CTF = tuple(shape_CTF)
        self._starts = list(starts)
        self._noises = [FrameNoise(seed, shape_CTF) for seed in seeds]

    def __call__(self, step: int, first: int, last: int) -> Tensor:
        """Noise of frames `first` to before `last`; see `FrameNoise`."""
        parts = []
        for noise, start, end in zip(self._noises, self._starts, [*self._starts[1:], last], strict=True):
            begin, stop = max(first, start), min(last, end)
            if begin < stop:
                parts.append(noise(step, begin, stop))
        return torch.cat(parts, dim=1) if parts else self._noises[0](step, first, last)


def checked_seeds(seed: int | Sequence[int], count: int) -> int | list[int]:
    """Refuse what is neither a seed nor one for each prompt.

    Args:
        seed: One whole number, or several.
        count: Number of prompts.

    Returns:
        The number, or a list of as many as there are prompts.

    Raises:
        MusiccmError: It is something else.
    """
    if _whole(seed) is not None:
        return _whole(seed)  # type: ignore[return-value]
    listed = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str | bytes) else None
    seeds = [_whole(one) for one in listed or []]
    if listed is None or None in seeds:
        raise MusiccmError(f"seed: expected a whole number, or a list of one for each prompt, found {seed!r}")
    if len(seeds) != count:
        raise MusiccmError(f"seed: expected one number, or one for each of the {count} prompts, found a list of "
                           f"{len(seeds)}")
    return seeds  # type: ignore[return-value]


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def prompt_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """The noise seed of each prompt.

    Args:
        seed: A list has one seed a prompt, each with the noise that this prompt alone would have; of one number the
            noise is drawn for the prompt's place.
        count: Number of prompts.

    Returns:
        What `sample_noise` takes.

    Raises:
        MusiccmError: As `checked_seeds`.
    """
    checked = checked_seeds(seed, count)
    return sample_seeds(checked, count) if isinstance(checked, int) else [sample_seeds(one, 1)[0] for one in checked]


def sample_seeds(seed: int, count: int) -> list[int]:
    """One seed a sample, from the run's seed and the sample's index alone."""
    digests = (hashlib.blake2b(f"{int(seed)}/{index}".encode(), digest_size=8).digest() for index in range(count))
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def seeded_noise_fn(seeds: Sequence[int], shape_CTF: Sequence[int]) -> NoiseFn:
    """A `noise_fn` over `sample_noise`, for samplers.

    Args:
        seeds: one seed a sample.
        shape_CTF: shape of one sample.

    Returns:
        `step -> eps_BCTF`.
    """
    return lambda step: sample_noise(seeds, shape_CTF, step)
