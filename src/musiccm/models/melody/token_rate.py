"""The grid of semantic tokens: 25 a second, whatever the sampling rate and whatever features they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

#: Semantic tokens a second (MeLoDy, section 4.1).
TOKEN_RATE_HZ = 25


def token_count(samples: int, sample_rate_hz: int) -> int:
    """How many tokens sound of some length has.

    Args:
        samples: Its length.
        sample_rate_hz: Its rate.

    Returns:
        The number.

    Raises:
        MusiccmError: The length is no whole number of tokens, or is none at all.
    """
    tokens, rest = divmod(samples * TOKEN_RATE_HZ, sample_rate_hz)
    if rest or tokens < 1:
        longer = (tokens + 1) * sample_rate_hz / TOKEN_RATE_HZ
        raise MusiccmError(f"semantic tokens: {samples} samples at {sample_rate_hz} Hz are no whole number of tokens "
                           f"of 1/{TOKEN_RATE_HZ} s; the next length on their grid is {longer:g} samples")
    return tokens


def to_token_rate(features_BTD: Tensor, frame_rate_hz: float, tokens: int) -> Tensor:
    """Resample features in time to the grid of tokens.

    Frame t covers the time from t to t + 1 frames. Of features that come faster than tokens, a token takes the mean
    over its own 40 ms, frames that it shares with its neighbour by the part that lies in it; of slower ones it takes
    what lies between the two nearest frames' centres, linearly.

    Args:
        features_BTD: Features.
        frame_rate_hz: Frames a second.
        tokens: How many tokens there are to be.

    Returns:
        [B, tokens, D].

    Raises:
        MusiccmError: The features end more than a frame before the last token does.
    """
    frames = features_BTD.shape[1]
    step = frame_rate_hz / TOKEN_RATE_HZ
    if frames + 1 < tokens * step:
        raise MusiccmError(f"semantic tokens: {frames} frames at {frame_rate_hz:g} Hz do not reach to the end of "
                           f"{tokens} tokens at {TOKEN_RATE_HZ} Hz")
    if step == 1 and frames >= tokens:
        return features_BTD[:, :tokens]
    place_T = torch.arange(frames, dtype=torch.float64)
    first_L = torch.arange(tokens, dtype=torch.float64)[:, None] * step
    if step > 1:
        inside_LT = (torch.minimum(place_T + 1, first_L + step) - torch.maximum(place_T, first_L)).clamp(min=0)
    else:
        centre_L = (first_L + step / 2 - 0.5).clamp(0, frames - 1)
        inside_LT = (1 - (place_T - centre_L).abs()).clamp(min=0)
    share_LT = inside_LT / inside_LT.sum(dim=1, keepdim=True)
    return share_LT.to(features_BTD) @ features_BTD
