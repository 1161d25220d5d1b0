"""Windows of a fixed length, levelled as MusicLDM's training data is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.audio.facts import AudioFacts
from musiccm.audio.io import CHANNELS, SILENCE_PEAK, read_range
from musiccm.audio.resample import RESAMPLERS, resample
from musiccm.errors import MusiccmError

# MusicLDM's data set: whole file mean removed, then scaled to this peak, before a window is cut.
PEAK = 0.5
# Extra input on either side of a resampled window, so that the filter sees the file and not the edge of the cut.
_RESAMPLE_MARGIN_S = 0.02
LEVELS = ("native", "resampled")


@dataclass(frozen=True)
class Conversion:
    """How a file becomes mono audio at another rate and level.

    MusicLDM's own data set is `Conversion("first", "torchaudio", "resampled")`.

    Args:
        channel: `mean` of the channels, or the `first`.
        resampler: See `resample`.
        level: Where the file's mean and peak are measured: at its `native` rate, which the scan of a corpus has done,
            so that a window is read without the rest of the file; or once the whole file is `resampled`, for which it
            is decoded again for every window.

    Raises:
        MusiccmError: A value is unknown.
    """

    channel: str = "mean"
    resampler: str = "torchaudio"
    level: str = "native"

    def __post_init__(self) -> None:
        known = {"channel": CHANNELS, "resampler": RESAMPLERS, "level": LEVELS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise MusiccmError(f"{name} must be one of {', '.join(values)}, found {getattr(self, name)!r}")


def key_hash(*key: int | str) -> int:
    """A number below 2^64 that depends on `key` alone, as good as uniform over different keys."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def keyed_seed(*key: int | str) -> int:
    """What `keyed_generator` seeds its generator with, for those who use one generator for many keys."""
    return key_hash(*key) >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on `key` alone: not on the order of calls, the process or the machine."""
    return torch.Generator().manual_seed(keyed_seed(*key))


def level(waveform_S: Tensor) -> Tensor:
    """Remove the mean and scale to a peak of 0.5; silence stays silence."""
    centred = waveform_S - waveform_S.mean(dim=-1, keepdim=True)
    peak = centred.abs().amax(dim=-1, keepdim=True)
    return torch.where(peak < SILENCE_PEAK, torch.zeros_like(centred), centred * (PEAK / peak.clamp(min=SILENCE_PEAK)))


def centred_start(total: int, length: int) -> int:
    """First sample of the window in the middle; 0 where the audio is no longer than the window."""
    return max(0, total - length) // 2


def random_start(total: int, length: int, *key: int | str) -> int:
    """First sample of a window drawn uniformly, by a generator keyed by `key`, such as (seed, epoch, clip id)."""
    if total <= length:
        return 0
    return int(torch.randint(total - length + 1, (), generator=keyed_generator(*key, "window")))


def fixed_window(waveform_S: Tensor, length: int, start: int | None = None) -> Tensor:
    """Level a whole waveform (mean removed, peak 0.5), then cut a window and pad it with zeros.

    Args:
        waveform_S: The whole file, mono, shape [S].
        length: Samples in the window.
        start: First sample; None centres the window.

    Returns:
        The window, shape [length].
    """
    start = centred_start(waveform_S.shape[-1], length) if start is None else start
    window = level(waveform_S)[..., start : start + length]
    return torch.nn.functional.pad(window, (0, length - window.shape[-1]))


def read_window(
    path: str,
    facts: AudioFacts,
    length: int,
    sample_rate_hz: int,
    start: int | None = None,
    conversion: Conversion | None = None,
) -> Tensor:
    """`fixed_window` of a file, without decoding the rest of it unless `conversion.level` needs it.

    With the level `native` the file's mean and peak come from `facts`, taken at the file's own rate; after resampling
    the peak of a window may therefore exceed 0.5 by the overshoot of the filter.

    Args:
        path: The file.
        facts: Its facts from `scan_audio`, of the same channel.
        length: Samples in the window, at `sample_rate_hz`.
        sample_rate_hz: Rate of the window.
        start: First sample of the window at `sample_rate_hz`; None centres it.
        conversion: Channel, resampler and level; those of `Conversion()` if not given.

    Returns:
        The window, float32, shape [length].

    Raises:
        BadAudio: The file changed since it was scanned, and cannot be used any more.
    """
    how = conversion or Conversion()
    return cut_window(lambda first, frames: read_range(path, first, frames, how.channel), facts, length, sample_rate_hz,
                      start, how)


def cut_window(
    read: Callable[[int, int], Tensor],
    facts: AudioFacts,
    length: int,
    sample_rate_hz: int,
    start: int | None = None,
    conversion: Conversion | None = None,
) -> Tensor:
    """`read_window` of audio that comes from anywhere.

    Args:
        read: Gives `frames` samples from sample `first`, both at the audio's own rate; mono, `[frames]`.
        facts: Of the same samples.
        length: Samples in the window, at `sample_rate_hz`.
        sample_rate_hz: Rate of the window.
        start: First sample of the window at `sample_rate_hz`; None centres it.
        conversion: Resampler and level; those of `Conversion()` if not given.

    Returns:
        The window, float32, shape [length].
    """
    how = conversion or Conversion()
    native_hz = facts.sample_rate_hz
    start = centred_start(resampled_length(facts, sample_rate_hz), length) if start is None else start
    if how.level == "resampled":
        whole = resample(read(0, facts.frames), native_hz, sample_rate_hz, how.resampler)
        return fixed_window(whole, length, start)
    if native_hz == sample_rate_hz:
        window = read(start, min(length, facts.frames - start)) - facts.dc
    else:
        # Whole periods of both rates, so that the cut falls on the same phase of the filter as in the whole file.
        divisor = math.gcd(native_hz, sample_rate_hz)
        step_in, step_out = native_hz // divisor, sample_rate_hz // divisor
        margin = math.ceil(_RESAMPLE_MARGIN_S * divisor)
        first = max(0, start // step_out - margin)
        last = -(-(start + length) // step_out) + margin
        frames = min((last - first) * step_in, facts.frames - first * step_in)
        # The mean goes first: the filter would smear the step between it and the zeros beyond the end of the file.
        wide = read(first * step_in, frames) - facts.dc
        window = resample(wide, native_hz, sample_rate_hz, how.resampler)[start - first * step_out :][:length]
    window = window * (PEAK / facts.peak)
    return torch.nn.functional.pad(window, (0, length - window.shape[-1]))


def resampled_length(facts: AudioFacts, sample_rate_hz: int) -> int:
    """Samples that a file has once resampled."""
    return -(-facts.frames * sample_rate_hz // facts.sample_rate_hz)
