"""A sequence as overlapping segments, and back (dual-path networks, arXiv 1910.06379, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_count(frames: int, size: int) -> int:
    """Segments S of a sequence: one starts every half segment, and one more covers the first half a second time."""
    return -(-frames // (size // 2)) + 1


def cut_segments(x_BLD: Tensor, size: int) -> Tensor:
    """Half-overlapping segments, half a segment of zeros before the sequence, and zeros up to a whole one behind it.

    Every frame lies in exactly two segments: in the second half of one and the first half of the next.

    Args:
        x_BLD: The sequence.
        size: Frames of a segment K, even.

    Returns:
        [K, B, S, D]: the frames of a segment first, as a recurrent path reads them.
    """
    hop, segments = size // 2, segment_count(x_BLD.shape[1], size)
    padded = F.pad(x_BLD, (0, 0, hop, segments * hop - x_BLD.shape[1]))
    halves_BSHD = padded.unflatten(1, (segments + 1, hop))
    return torch.cat([halves_BSHD[:, :-1], halves_BSHD[:, 1:]], dim=2).permute(2, 0, 1, 3).contiguous()


def add_segments(x_KBSD: Tensor, frames: int) -> Tensor:
    """Lay segments where they came from and add them: of segments that nothing changed, twice the sequence.

    Args:
        x_KBSD: Segments as `cut_segments` gives them.
        frames: Frames L of the sequence.

    Returns:
        [B, L, D].
    """
    hop = len(x_KBSD) // 2
    first, second = x_KBSD[:hop], x_KBSD[hop:]
    # the half between the starts of segments s and s + 1 is the first of one and the second of the other
    inner_HBSD = first[:, :, 1:] + second[:, :, :-1]
    return inner_HBSD.permute(1, 2, 0, 3).flatten(1, 2)[:, :frames]
