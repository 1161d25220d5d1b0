"""Music of any length window by window, each of which holds what is there and makes what is not.

A window that overlaps the music before it by all but a chunk is MeLoDy's continuation (arXiv 2305.15719, algorithm 2),
one around a hole its inpainting. Unlike `sample_shared`, nothing is averaged, and frames that are made are never made
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from musiccm.diffusion import Condition
from musiccm.errors import MusiccmError
from musiccm.samplers.base import Stepper
from musiccm.samplers.held import fill
from musiccm.samplers.noise import INITIAL, FrameNoise

TokensOf: TypeAlias = Callable[[int, int], Condition]
"""`tokens_of(first, last)`: the condition of the tokens from `first` to before `last`, one item a piece."""


@dataclass(frozen=True)
class ChunkWindows:
    """Where windows lie on a piece.

    The first window of a continuation of little music holds all of that, and makes the rest.

    Args:
        window: Frames that the network was trained on.
        chunk: New frames a window, where there is music enough to hold the others: a quarter of the window in MeLoDy.
            More is faster, and lets a new frame see less of what came before.
        frames_per_token: Latent frames that a semantic token covers.

    Raises:
        MusiccmError: The three do not go together.
    """

    window: int
    chunk: int
    frames_per_token: int

    def __post_init__(self) -> None:
        if self.frames_per_token < 1 or self.window < 1 or self.window % self.frames_per_token:
            raise MusiccmError(f"window: expected a multiple of {self.frames_per_token} frames, those of a semantic "
                               f"token, found {self.window}")
        if not self.frames_per_token <= self.chunk < self.window:
            raise MusiccmError(f"chunk: expected {self.frames_per_token} frames or more, and less than the window of "
                               f"{self.window}, found {self.chunk}")

    def check(self, total: int | None, known: int = 0) -> None:
        """Refuse a piece that cannot be made so.

        Args:
            total: Its frames; None for one without end.
            known: Frames at its start that are there; 0 for new music.

        Raises:
            MusiccmError: It is off the grid of tokens, shorter than a window, or goes on by less than a chunk.
        """
        if total is not None and total % self.frames_per_token:
            raise MusiccmError(f"length: {total} latent frames are no whole number of semantic tokens, of "
                               f"{self.frames_per_token} frames each; expected "
                               f"{-(-total // self.frames_per_token) * self.frames_per_token}")
        if total is not None and total < self.window:
            raise MusiccmError(f"length: a piece of {total} frames is shorter than one window of {self.window}; make a "
                               "whole window and cut it")
        if known and total is not None and total - known < self.chunk:
            raise MusiccmError(f"continuation: expected at least one chunk of {self.chunk} new frames, found "
                               f"{total - known}; make a chunk and cut it")

    def place(self, first: int, end: int | None, total: int | None) -> int:
        """Where the next window starts, on the grid of tokens.

        Args:
            first: The first frame that is not there.
            end: The next frame that is there again; None where there is none.
            total: Frames of the piece; None for one without end.

        Returns:
            The window's first frame.
        """
        if end is not None and end - first <= self.chunk:  # a hole: as much of what is before as of what is behind
            start = first - (self.window - (end - first)) // 2
        else:
            start = first + self.chunk - self.window
        start = max(0, start if total is None else min(start, total - self.window))
        return start // self.frames_per_token * self.frames_per_token


def tokens_of(condition: Condition, frames: int, frames_per_token: int) -> TokensOf:
    """Windows of the tokens of a whole piece.

    Args:
        condition: The tokens, or none at all for no condition.
        frames: Latent frames of the piece.
        frames_per_token: Latent frames that a token covers.

    Returns:
        What gives the tokens of a window.

    Raises:
        MusiccmError: There are not as many as cover the piece, in each item that has any.
    """
    needed = -(-frames // frames_per_token)
    if condition.tokens_BLD is None or condition.mask_BL is None:
        raise MusiccmError("tokens: expected a condition of semantic tokens, found a vector")
    counts = condition.mask_BL.sum(1).tolist()
    if wrong := [count for count in counts if count not in (0, needed)]:
        raise MusiccmError(f"tokens: {frames} latent frames need {needed} semantic tokens, one for {frames_per_token} "
                           f"frames, found {wrong[0]}")
    padded = condition.padded(max(needed, condition.tokens_BLD.shape[1]))
    assert padded.tokens_BLD is not None and padded.mask_BL is not None
    tokens_BLD, mask_BL = padded.tokens_BLD, padded.mask_BL
    return lambda first, last: Condition(tokens_BLD[:, first:last], mask_BL[:, first:last])


def _window(
    stepper: Stepper, windows: ChunkWindows, tokens: TokensOf, noises: Sequence[FrameNoise], start: int,
    clean_BCTF: Tensor, held_T: Tensor,
) -> Tensor:
    """One window, from frame `start` of the piece on."""
    last, device = start + windows.window, clean_BCTF.device

    def noise(step: int) -> Tensor:
        return torch.stack([of_piece(step, start, last) for of_piece in noises]).to(device)

    cond = tokens(start // windows.frames_per_token, last // windows.frames_per_token)
    counts = [] if cond.mask_BL is None else cond.mask_BL.sum(1).tolist()
    needed = windows.window // windows.frames_per_token
    if len(cond) != len(noises) or any(count not in (0, needed) for count in counts):
        raise MusiccmError(f"tokens: expected {needed} of each of {len(noises)} pieces for frames {start} to {last}, "
                           f"found {counts}")
    return fill(stepper, cond.to(device), clean_BCTF, held_T, noise(INITIAL), noise)


@torch.no_grad()
def fill_piece(
    stepper: Stepper, windows: ChunkWindows, tokens: TokensOf, noises: Sequence[FrameNoise], clean_BCTF: Tensor,
    held_T: Tensor,
) -> Tensor:
    """Make what is missing of pieces of any length: all of it, what follows their start, holes.

    Args:
        stepper: The sampler at work, of a network that takes `held_BT` (`FrameDenoiser`).
        windows: Where windows lie.
        tokens: Semantic tokens of the pieces.
        noises: Noise by position, one a piece.
        clean_BCTF: The pieces; what is not held is not looked at.
        held_T: Frames that are there, boolean.

    Returns:
        The pieces: held frames bit by bit as they were, the others new.

    Raises:
        MusiccmError: See `ChunkWindows.check`; or the mask is not one of their frames, or holds all.
    """
    total = clean_BCTF.shape[2]
    held_T = held_T.cpu().clone()
    if held_T.dtype != torch.bool or held_T.shape != (total,) or bool(held_T.all()):
        raise MusiccmError(f"held frames: expected a boolean mask of {total} frames with some that are not held, found "
                           f"{held_T.dtype} of shape {list(held_T.shape)}")
    missing_N = torch.nonzero(~held_T)[:, 0]
    prefix = int(missing_N[0]) if not bool(held_T[missing_N[0] :].any()) else 0
    windows.check(total, prefix)
    z_BCTF = clean_BCTF.clone()
    while not bool(held_T.all()):
        first = int(torch.nonzero(~held_T)[0])
        again_N = torch.nonzero(held_T[first:])
        start = windows.place(first, first + int(again_N[0]) if len(again_N) else None, total)
        part = slice(start, start + windows.window)
        z_BCTF[:, :, part] = _window(stepper, windows, tokens, noises, start, z_BCTF[:, :, part], held_T[part])
        held_T[part] = True
    return z_BCTF


@torch.no_grad()
def stream_piece(
    stepper: Stepper, windows: ChunkWindows, tokens: TokensOf, noises: Sequence[FrameNoise], shape_CF: tuple[int, int],
    total: int | None = None, before_BCTF: Tensor | None = None, device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """What `fill_piece` makes of new music or of a continuation, chunk by chunk, in the memory of a window.

    Args:
        stepper: See `fill_piece`.
        windows: See `fill_piece`.
        tokens: See `fill_piece`; asked window by window, so that a language model may write ahead of it.
        noises: See `fill_piece`.
        shape_CF: Channels and bins of the latents.
        total: Frames of the pieces, with those that are there; None to go on until it is closed.
        before_BCTF: Music to go on from.
        device: Where the network is.

    Yields:
        New latents `[B, C, T, F]`: at first those of a window, then a chunk's.

    Raises:
        MusiccmError: See `ChunkWindows.check`.
    """
    known = 0 if before_BCTF is None else before_BCTF.shape[2]
    windows.check(total, known)
    # the frames before `known`, as many as a window may hold
    tail_BCTF = torch.zeros(len(noises), shape_CF[0], 0, shape_CF[1], device=device)
    if before_BCTF is not None:
        tail_BCTF = before_BCTF[:, :, -windows.window :].to(device)
    while total is None or known < total:
        start = windows.place(known, None, total)
        held = known - start
        old_BCTF = tail_BCTF[:, :, tail_BCTF.shape[2] - held :]
        room = old_BCTF.new_zeros(*old_BCTF.shape[:2], windows.window - held, shape_CF[1])
        window_BCTF = _window(stepper, windows, tokens, noises, start, torch.cat([old_BCTF, room], dim=2),
                              torch.arange(windows.window) < held)
        yield window_BCTF[:, :, held:]
        tail_BCTF, known = window_BCTF, start + windows.window
