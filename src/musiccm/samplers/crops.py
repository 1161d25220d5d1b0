"""How a long piece is cut into the windows that a network was trained on, and how they are laid together again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musiccm.bounds import FUSIONS
from musiccm.errors import MusiccmError


@dataclass(frozen=True)
class Crops:
    """Overlapping windows along time that cover every frame of a piece: `ceil((L - W)/h) + 1` of them.

    Crop i starts at `i h`; the last one is shifted back so that it ends with the piece. Units are the caller's: latent
    frames for the sampler, mel frames for the decoder.

    Args:
        length: Frames L of the piece, at least `window`; None for a piece without end.
        window: Frames W of a crop.
        hop: Frames h between the starts of two crops, at most `window`.

    Raises:
        MusiccmError: The three do not fit together.
    """

    length: int | None
    window: int
    hop: int

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= self.window:
            raise MusiccmError(f"hop: expected 1 to {self.window} frames, the window, found {self.hop}")
        if self.length is not None and self.length < self.window:
            raise MusiccmError(f"a piece of {self.length} frames is shorter than one window of {self.window}; "
                               "make a whole window and cut it")

    @classmethod
    def overlapping(cls, length: int | None, window: int, overlap: float) -> Crops:
        """Crops that share a given part of their window with the next one.

        Args:
            length: See the class.
            window: See the class.
            overlap: Shared part, from 0 to below 1; rounded to whole frames.

        Returns:
            The crops.

        Raises:
            MusiccmError: `overlap` is out of range.
        """
        if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0.0 <= overlap < 1.0:
            raise MusiccmError(f"overlap: expected a part of the window from 0 to below 1, found {overlap!r}")
        return cls(length, window, max(1, round(window * (1.0 - overlap))))

    @property
    def count(self) -> int | None:
        """Number of crops; None without end."""
        return None if self.length is None else -(-(self.length - self.window) // self.hop) + 1

    def start(self, index: int) -> int:
        """First frame of a crop."""
        start = index * self.hop
        return start if self.length is None else min(start, self.length - self.window)

    def exists(self, index: int) -> bool:
        """Whether there is a crop of this index."""
        return index >= 0 and (self.count is None or index < self.count)

    def settled(self, done: int) -> int:
        """Frames, from the start of the piece, that no crop but the first `done` covers."""
        if self.exists(done):
            return self.start(done)
        assert self.length is not None
        return self.length

    def share(self, index: int, profile_W: Tensor | None, parity: int = 0) -> Tensor:
        """What part of each of its frames one crop contributes; the parts of all crops sum to 1 at every frame.

        The minimiser of `sum_i w_i |J - x_i|^2` is `J = sum_i w_i x_i / sum_i w_i` (MultiDiffusion, arXiv 2302.08113;
        MusicCM, equation 10): this is `w_i / sum_i w_i`, exactly 1 where a crop is alone.

        Args:
            index: The crop.
            profile_W: Weights w along a crop, not negative. Where all weights of a frame are 0, crops count alike.
                None alternates between the crops frame by frame (SaFa, arXiv 2502.05130).
            parity: Shifts that alternation.

        Returns:
            Parts of shape [window], float32.
        """
        first = self.start(index)
        span = -(-self.window // self.hop) + 1  # the last crop starts less than a hop after its predecessor
        near = [j for j in range(index - span, index + span + 1) if self.exists(j)]
        frames_W = torch.arange(first, first + self.window)
        position_JW = frames_W - torch.tensor([self.start(j) for j in near])[:, None]
        covers_JW = (position_JW >= 0) & (position_JW < self.window)
        mine = near.index(index)
        if profile_W is None:
            rank_W = covers_JW[:mine].sum(0)
            return ((frames_W + parity) % covers_JW.sum(0) == rank_W).float()
        weight_JW = profile_W.double()[position_JW.clamp(0, self.window - 1)] * covers_JW
        weight_JW = torch.where(weight_JW.sum(0) > 0, weight_JW, covers_JW.double())
        return (weight_JW[mine] / weight_JW.sum(0)).float()


def fusion_profile(fusion: str, window: int) -> Tensor | None:
    """The weights along a crop that a fusion stands for, as `Crops.share` takes them.

    Args:
        fusion: One of `FUSIONS`.
        window: Frames of a crop.

    Returns:
        Weights of shape [window], or None for `swap`.

    Raises:
        MusiccmError: The fusion is unknown.
    """
    if fusion == "swap":
        return None
    if fusion == "uniform":
        return torch.ones(window)
    if fusion == "triangular":
        distance = torch.arange(window) + 0.5
        return torch.minimum(distance, window - distance)
    raise MusiccmError(f"fusion: expected one of {', '.join(FUSIONS)}, found {fusion!r}")


def fade_profile(window: int, trimmed: int, ramp: int) -> Tensor:
    """Weights that drop a crop's edges and fade it beside them, for crops that overlap by `2 trimmed + ramp`.

    Args:
        window: Frames of a crop.
        trimmed: Frames dropped on either side.
        ramp: Frames of the fade on either side.

    Returns:
        Weights of shape [window].
    """
    distance = torch.arange(window) + 0.5
    distance = torch.minimum(distance, window - distance)
    return ((distance - trimmed) / max(ramp, 1)).clamp(0.0, 1.0)
