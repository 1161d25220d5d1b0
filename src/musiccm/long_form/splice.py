"""New sound laid into sound that is there: levels that match, fades that keep the power, peaks that are held.

Nothing here changes a sample outside of the stretch that is made and its fades.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CEILING = 10 ** (-1 / 20)
"""Where new sound is held: 1 dB below full scale, or at the clip's own peak where that is above."""

LIMITER_S = 0.005
"""The limiter's gain moves for this long before and behind a peak."""

STEP_DB, MOST_STEP_DB = 2.0, 12.0
"""A step of level at a seam that is left as it is, and how much of one beyond it is taken off at most. Inside real
music, seven of ten places have less of one from second to second (docs/long.md)."""

_QUIET = 1e-4  # RMS below which there is no level to match: -80 dB of full scale


def spread(waveform_CS: Tensor) -> Tensor:
    """Root mean square of every channel, without its mean."""
    return waveform_CS.double().var(dim=-1, unbiased=False).sqrt()


def channel_gains(original_CS: Tensor, remade_S: Tensor, quiet: float = 0.0) -> Tensor | None:
    """What a model's sound is to be multiplied by, channel by channel, to be as loud as the original.

    Both are of the same music: the original and what the model's codec makes of it, so that the ratio is the codec's
    and the channels' alone, and what happens in the music is left to it.

    Args:
        original_CS: A stretch of the original.
        remade_S: The same stretch by the codec.
        quiet: Level (RMS) of the original's loudest channel below which there is nothing to match.

    Returns:
        Gains of shape [C]; None where either is silent, or the original quiet.
    """
    if original_CS.shape[-1] < 2 or len(remade_S) < 2:
        return None
    wanted_C, found = spread(original_CS), spread(remade_S)
    if float(wanted_C.max()) < max(quiet, _QUIET) or float(found) < _QUIET * 1e-2:
        return None
    return (wanted_C / found).to(remade_S.dtype)


def step_gain(clip_CS: Tensor, new_CS: Tensor, quiet: float = 0.0) -> float:
    """What is left to do about a step of level where new sound meets the clip.

    Music is louder and quieter from second to second; what is beyond `STEP_DB` is taken off, up to `MOST_STEP_DB`.

    Args:
        clip_CS: The clip on its side of the seam.
        new_CS: New sound on the other, as loud as the codec's sound of the clip would be.
        quiet: Level (RMS, of all channels) of either below which nothing is done: a rest is no step.

    Returns:
        A factor for the new sound; 1 where the step is one of music.
    """
    if min(clip_CS.shape[-1], new_CS.shape[-1]) < 2:
        return 1.0
    there, new = (float(spread(sound_CS).square().mean().sqrt()) for sound_CS in (clip_CS, new_CS))
    if min(there, new) <= quiet:
        return 1.0
    step_db = 20.0 * math.log10(new / there)
    excess_db = min(max(abs(step_db) - STEP_DB, 0.0), MOST_STEP_DB)
    return 10.0 ** (-math.copysign(excess_db, step_db) / 20.0)


def between(left_C: Tensor, right_C: Tensor, length: int) -> Tensor:
    """Gains [C, length] that go evenly, in decibels, from one side's to the other's."""
    way = torch.linspace(0.0, 1.0, length, dtype=left_C.dtype)
    ends = [side.clamp(min=1e-6).log()[:, None] for side in (left_C, right_C)]
    return torch.lerp(*ends, way).exp() if not torch.equal(left_C, right_C) else left_C[:, None].expand(-1, length)


def fade_weights(length: int, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of what goes out and what comes in that keep the power, however alike the two are.

    With a correlation r, `a^2 + b^2 + 2 r a b = 1`: a cosine and a sine for sounds that have nothing in common (r = 0,
    equal power), divided by their sum for one and the same sound (r = 1, whose level does not move).

    Args:
        length: Samples of the fade.
        likeness: Correlation of each channel, shape [C], from 0 to 1.

    Returns:
        `(out_CL, in_CL)`.
    """
    angle = (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1) * (math.pi / 2)
    out_L, in_L = angle.cos(), angle.sin()
    norm_CL = (1.0 + 2.0 * likeness.double()[:, None] * (out_L * in_L)).sqrt()
    return out_L / norm_CL, in_L / norm_CL


def likeness(first_CS: Tensor, second_CS: Tensor) -> Tensor:
    """Correlation of two sounds, channel by channel, 0 where it is negative or one of them is silent."""
    first_CS, second_CS = first_CS.double(), second_CS.double()
    product_C = (first_CS * second_CS).sum(-1)
    power_C = (first_CS.square().sum(-1) * second_CS.square().sum(-1)).sqrt()
    return torch.where(power_C > 0, product_C / power_C.clamp(min=1e-30), 0.0).clamp(0.0, 1.0)


def limiter_gain(held_CS: Tensor, added_CS: Tensor, most_CS: Tensor, reach: int) -> Tensor:
    """A gain of what is added that keeps the sum within bounds.

    Args:
        held_CS: What is not touched; nowhere beyond `most_CS`.
        added_CS: What the gain is for.
        most_CS: The largest magnitude of the sum.
        reach: Samples before and behind a peak in which the gain moves.

    Returns:
        Gains of shape [S], one for all channels, from 0 to 1; 1 where no peak is near.
    """
    room_CS = (most_CS - held_CS * added_CS.sign()).clamp(min=0.0)
    needed_S = (room_CS / added_CS.abs().clamp(min=1e-12)).clamp(max=1.0).amin(dim=0)
    if bool((needed_S >= 1.0).all()):
        return torch.ones_like(needed_S)
    # The lowest near by, then a mean over as many samples: nowhere above what is needed.
    lowest = -F.max_pool1d(-needed_S[None, None], 2 * reach + 1, 1, reach)
    return F.avg_pool1d(F.pad(lowest, (reach, reach), mode="replicate"), 2 * reach + 1, 1)[0, 0]


class Spliced(NamedTuple):
    """A clip with new sound in it.

    Args:
        waveform_CS: The whole.
        limited_db: How far the limiter held the new sound down at most; 0 where it had nothing to do.
    """

    waveform_CS: Tensor
    limited_db: float


def splice(
    original_CS: Tensor, new_CS: Tensor, begin: int, fade_in: int, fade_out: int, sample_rate_hz: int
) -> Spliced:
    """Lay new sound into a clip.

    Args:
        original_CS: The clip.
        new_CS: New sound at the clip's rate, its fades included; it may go on where the clip ends.
        begin: Sample of the clip where it begins.
        fade_in: Its first samples, over which the clip goes out.
        fade_out: Its last samples, over which the clip comes back.
        sample_rate_hz: Of both.

    Returns:
        The whole: the clip's own samples before and behind, bit for bit.
    """
    end = begin + new_CS.shape[1]
    there_CS = F.pad(original_CS[:, begin:end], (0, max(0, end - original_CS.shape[1])))
    held_CS, added_CS = torch.zeros_like(new_CS), new_CS.clone()
    last = new_CS.shape[1]
    for fade, place, back in ((fade_in, slice(0, fade_in), False), (fade_out, slice(last - fade_out, last), True)):
        if fade == 0:
            continue
        out_CL, in_CL = fade_weights(fade, likeness(there_CS[:, place], new_CS[:, place]))
        if back:  # the clip comes in again
            out_CL, in_CL = out_CL.flip(-1), in_CL.flip(-1)
        held_CS[:, place] = (there_CS[:, place] * out_CL).to(held_CS)
        added_CS[:, place] = (new_CS[:, place] * in_CL).to(added_CS)
    ceiling = max(CEILING, float(original_CS.abs().max()))
    most_CS = torch.full_like(held_CS, ceiling)
    gain_S = limiter_gain(held_CS, added_CS, most_CS, max(1, round(LIMITER_S * sample_rate_hz)))
    mixed_CS = (held_CS + added_CS * gain_S).clamp(-ceiling, ceiling).to(original_CS)
    limited_db = -20.0 * math.log10(max(float(gain_S.min()), 1e-6))
    return Spliced(torch.cat([original_CS[:, :begin], mixed_CS, original_CS[:, end:]], dim=1), limited_db)
