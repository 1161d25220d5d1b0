"""What an edit looks at of a clip, and what of that it makes anew, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from musiccm.long_form.chunk_piece import ChunkPiece
from musiccm.long_form.piece import Piece


@dataclass(frozen=True)
class View:
    """The part of a clip that the model looks at: latent frames that lie on the border of what is made anew.

    Args:
        begin: Where it begins, in samples at the model's rate; below 0 where the first frame is not filled by the clip.
        left: Latent frames of the clip before the new ones.
        new: New latent frames.
        right: Latent frames of the clip behind them.
        per: Samples of a latent frame.
    """

    begin: int
    left: int
    new: int
    right: int
    per: int

    @property
    def frames(self) -> int:
        """All of them."""
        return self.left + self.new + self.right

    @property
    def back(self) -> int:
        """Where the clip comes back, or the new sound ends, in samples at the model's rate."""
        return self.begin + (self.left + self.new) * self.per


@dataclass(frozen=True)
class EditLayout:
    """An edit that keeps a part of its clip.

    Args:
        view: What the model looks at.
        piece: The view's music.
        kept_T: Its latent frames that are the clip's.
        start: Sample of the original where new sound begins.
        length: Samples of the result, at the original's rate.
    """

    view: View
    piece: Piece | ChunkPiece
    kept_T: Tensor
    start: int
    length: int
