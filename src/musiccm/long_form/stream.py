"""Music while it is made: as long as one likes, in memory that does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.long_form.compose import Piece
from musiccm.long_form.direct import piece_decoder
from musiccm.long_form.model import MusicModel
from musiccm.samplers import Wavefront


class MusicStream:
    """Iterates over chunks of a piece's sound; what they make together is what `compose` makes of the same piece.

    The two differ by rounding alone, because their network calls batch the windows differently: below 1e-4 of full
    scale in float32. Closing the stream, or forgetting it, ends it.

    Args:
        pipeline: The model.
        piece: The piece.

    Attributes:
        calls: Batched network calls so far.
    """

    def __init__(self, pipeline: MusicModel, piece: Piece) -> None:
        self.sample_rate_hz = pipeline.sample_rate_hz
        self.calls = 0
        self._piece = piece
        crops = piece.process.crops
        piece.require_used()
        self._front = Wavefront(piece.process, piece.cond_of)
        self._decoder = piece_decoder(pipeline.codec, crops.window, crops.length)
        self._left = piece.samples
        self._closed = False

    @property
    def samples(self) -> int | None:
        """Samples of the whole piece; None without end."""
        return self._piece.samples

    @property
    def prompts(self) -> list[tuple[float, str]]:
        """The texts along time as they were played so far and are planned; `compose` of these is the same music."""
        return list(self._piece.condition.plan.entries)

    def set_prompt(self, text: str) -> float:
        """Change the text for all that has not begun, in place of what was planned from there on.

        Args:
            text: What the music should be like from now on.

        Returns:
            Seconds into the piece from which the text holds. The music moves there over the overlap of two windows.

        Raises:
            MusiccmError: The text is no description, or the last window of the piece has begun.
        """
        begun = self._front.begun
        if self._closed or not self._piece.process.crops.exists(begun):
            raise MusiccmError("set_prompt: the last window of the piece has begun, no window would use a new text; "
                               "start another stream")
        time_s = self._piece.centre_s(begun) if begun else 0.0
        self._piece.condition.plan.change(time_s, text)
        return time_s

    def __iter__(self) -> MusicStream:
        return self

    @torch.no_grad()
    def __next__(self) -> Tensor:
        """The next chunk of sound, [S], float32 on the CPU, never empty.

        Raises:
            StopIteration: The piece is over or the stream was closed.
        """
        while not self._closed and not self._front.finished and self._left != 0:
            latents_CTF = self._front.tick()
            self.calls += 1
            chunk = self._decoder.push(latents_CTF)[: self._left]
            if len(chunk):
                if self._left is not None:
                    self._left -= len(chunk)
                return chunk
        raise StopIteration

    def close(self) -> None:
        """End the stream: it gives no more sound."""
        self._closed = True
