"""Music while it is made: as long as one likes, in memory that does not grow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

import torch
from torch import Tensor

from musiccm import signals
from musiccm.audio.level_stream import LevelStream
from musiccm.bounds import check_text
from musiccm.errors import MusiccmError
from musiccm.long_form.chunk_piece import ChunkFront, ChunkPiece
from musiccm.long_form.direct import Decoding, piece_decoder
from musiccm.long_form.finishing import warn_of_silence
from musiccm.long_form.model import MusicModel
from musiccm.long_form.piece import Piece
from musiccm.long_form.prompts import require_whole
from musiccm.samplers import Wavefront

WATCH_S = 10.0
"""A stream that is near silence for so long from its beginning is reported."""


@contextlib.contextmanager
def _uncut() -> Iterator[None]:
    """A stretch after which the level still can be ended by `rest`: a signal within is left to who asks for it."""
    signals.hold()
    try:
        yield
    finally:
        signals.release()


class MusicStream:
    """Iterates over chunks of a piece's sound; what they make together is what `compose` makes of the same piece.

    The two differ by rounding alone, because their network calls batch the windows differently: below 1e-4 of full
    scale in float32, before any level. Closing the stream, leaving its `with` block or forgetting it ends it.

    Args:
        pipeline: The model.
        piece: The piece.
        level: `none`, or `peak` or `loudness`, by the rule of `LevelStream`.

    Attributes:
        calls: Batched network calls so far.

    Raises:
        MusiccmError: The level is unknown, or no window would use some text.
    """

    def __init__(self, pipeline: MusicModel, piece: Piece | ChunkPiece, level: str = "none") -> None:
        self.sample_rate_hz = pipeline.sample_rate_hz
        self.calls = 0
        self._piece, self._conditioner = piece, pipeline.conditioner
        piece.require_used()
        self._level = LevelStream(pipeline.sample_rate_hz, level)
        self._front: Wavefront | ChunkFront | None = piece.front()
        self._decoder: Decoding | None = piece_decoder(pipeline.codec, piece.window, piece.length)
        self._left = piece.samples
        self._warned = False

    @property
    def samples(self) -> int | None:
        """Samples of the whole piece; None without end."""
        return self._piece.samples

    @property
    def prompts(self) -> list[tuple[float, str]]:
        """The texts along time as they were played so far and are planned; `compose` of these is the same music."""
        return list(self._piece.plan.entries)

    def set_prompt(self, text: str) -> float:
        """Change the text for all that has not begun, in place of what was planned from there on.

        Args:
            text: What the music should be like from now on.

        Returns:
            Seconds into the piece from which the text holds. The music moves there over the overlap of two windows.

        Raises:
            MusiccmError: The text is no description or longer than the model reads, or the last window of the piece
                has begun; the stream plays on as it was planned.
        """
        require_whole(self._conditioner, [check_text(text)])
        time_s = None if self._front is None else self._piece.change_at(self._front.begun)
        if time_s is None:
            raise MusiccmError("set_prompt: the last window of the piece has begun, no window would use a new text; "
                               "start another stream")
        self._piece.plan.change(time_s, text)
        return time_s

    def __iter__(self) -> MusicStream:
        return self

    @torch.no_grad()
    def __next__(self) -> Tensor:
        """The next chunk of sound, [S], float32 on the CPU, never empty.

        Raises:
            StopIteration: The piece is over or the stream was closed.
        """
        front, decoder = self._front, self._decoder
        while front is not None and decoder is not None and self._front is front:
            if front.finished or self._left == 0:
                chunk = self.rest()
            else:
                latents_CTF = front.tick()
                self.calls += 1
                chunk = self._taken(decoder.push(latents_CTF)[: self._left])
            if len(chunk):
                return chunk
        raise StopIteration

    def rest(self) -> Tensor:
        """End the stream, and give what the level has held back of the sound that was made, its end faded.

        Returns:
            The last sound, [S], up to 0.7 s; empty without a level, or where the stream has ended.
        """
        if self._front is None:
            return torch.empty(0)
        self.close()
        with _uncut():
            last = self._level.finish()
        self._watch(ended=True)
        return last

    def close(self) -> None:
        """End the stream: it gives no more sound, and lets go of what it held."""
        self._front = self._decoder = None

    def __enter__(self) -> MusicStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _taken(self, chunk: Tensor) -> Tensor:
        """New sound through the level."""
        if self._left is not None:
            self._left -= len(chunk)
        with _uncut():
            levelled = self._level.push(chunk)
        self._watch(ended=False)
        return levelled

    def _watch(self, ended: bool) -> None:
        """Warn once where the beginning, or the whole, is near silence."""
        found = None if self._warned else self._level.silent_so_far(WATCH_S, ended)
        if found is not None:
            self._warned = True
            warn_of_silence(f"the stream of {self._piece.plan.name}", found)
