"""A piece of a model that plans tokens: windows that hold what is there, one after the other (MeLoDy's algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.long_form.model import MusicModel
from musiccm.long_form.piece import DEFAULT_OVERLAP
from musiccm.long_form.prompts import PromptPlan, Prompts
from musiccm.samplers import INITIAL, FrameNoise, SectionNoise, Stepper
from musiccm.samplers.chunks import ChunkWindows, fill_piece, stream_piece

if TYPE_CHECKING:  # it takes transformers to import
    from musiccm.models.melody.conditioner import SemanticConditioner, TokenWriter


class ChunkFront:
    """A piece from front to back, as `Wavefront` makes one of shared windows."""

    def __init__(self, chunks: Iterator[Tensor], length: int | None) -> None:
        self._chunks, self._length = chunks, length
        self._made = 0

    @property
    def begun(self) -> int:
        """Latent frames that are made: what follows can still be told something else."""
        return self._made

    @property
    def finished(self) -> bool:
        """Whether the whole piece has been handed out."""
        return self._length is not None and self._made >= self._length

    def tick(self) -> Tensor:
        """One window; its new latents, `[C, frames, F]`."""
        z_BCTF = next(self._chunks)
        self._made += z_BCTF.shape[2]
        return z_BCTF[0]


@dataclass(frozen=True)
class _Started:
    """Noise by position whose initial noise is replaced by latents to start from."""

    start_CTF: Tensor
    noise: FrameNoise | SectionNoise

    def __call__(self, step: int, first: int, last: int) -> Tensor:
        """See `FrameNoise`."""
        return self.start_CTF[:, first:last].cpu() if step == INITIAL else self.noise(step, first, last)


@dataclass(frozen=True)
class ChunkPiece:
    """All that fixes a piece; what `Piece` is for windows that share what they make.

    Args:
        stepper: The sampler at work, of a network that takes held frames.
        windows: Where windows lie.
        plan: Texts along time.
        conditioner: Plans tokens.
        noise: By position.
        seeds: Of the tokens, one for each text or one for all.
        shape_CTF: Of a window.
        length: Latent frames; None without end.
        samples: Samples of sound; None without end.
        frame_samples: Samples of a latent frame.
        begin_s: Where the piece begins, in the plan's time.
        sample_rate_hz: Rate of the sound.
        device: Where the networks are.
    """

    stepper: Stepper
    windows: ChunkWindows
    plan: PromptPlan
    conditioner: SemanticConditioner
    noise: FrameNoise | SectionNoise
    seeds: Sequence[int]
    shape_CTF: tuple[int, int, int]
    length: int | None
    samples: int | None
    frame_samples: int
    begin_s: float
    sample_rate_hz: int
    device: torch.device

    @classmethod
    def of(
        cls,
        pipeline: MusicModel,
        prompts: Prompts,
        duration_s: float | None,
        stepper: Stepper,
        noise_seed: int | Sequence[int],
        overlap: float | None,
        fusion: str | None,
        begin_s: float = 0.0,
    ) -> ChunkPiece:
        """Lay a piece out; arguments as `Piece.of`.

        Raises:
            MusiccmError: A fusion, as nothing is fused; or an overlap that leaves a window nothing to hold or to make.
        """
        if fusion is not None:
            raise MusiccmError(f"fusion: windows of this model hold what is there and are not fused; leave it out, "
                               f"found {fusion!r}")
        overlap = DEFAULT_OVERLAP if overlap is None else overlap
        if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 < overlap < 1:
            raise MusiccmError(f"overlap: expected a share above 0 and below 1 of a window, which it holds of what is "
                               f"there, found {overlap!r}")
        shape, per = pipeline.latent_shape, cls.grid(pipeline)
        chunk = min(max(per, round(shape[1] * (1 - overlap) / per) * per), shape[1] - per)
        samples = None if duration_s is None else max(1, round(duration_s * pipeline.sample_rate_hz))
        length = None
        if samples is not None:
            length = max(shape[1], -(-math.ceil(samples / pipeline.frame_samples) // per) * per)
        plan, frame_s = PromptPlan(prompts), pipeline.frame_samples / pipeline.sample_rate_hz
        noise: FrameNoise | SectionNoise
        if isinstance(noise_seed, int):
            noise, seeds = FrameNoise(noise_seed, shape), [noise_seed]
        else:
            noise = SectionNoise(noise_seed, [round(start_s / frame_s) for start_s, _ in plan.entries], shape)
            seeds = list(noise_seed)
        return cls(stepper, ChunkWindows(shape[1], chunk, per), plan, pipeline.conditioner, noise, seeds, shape, length,
                   samples, pipeline.frame_samples, begin_s, pipeline.sample_rate_hz, pipeline.device)

    @staticmethod
    def grid(pipeline: MusicModel) -> int:
        """Latent frames that what is kept and what is new must be multiples of: a token's."""
        return pipeline.latent_shape[1] // pipeline.conditioner.tokens

    @property
    def frame_s(self) -> float:
        """Seconds of a latent frame."""
        return self.frame_samples / self.sample_rate_hz

    @property
    def window(self) -> int:
        """Latent frames of a window."""
        return self.windows.window

    def sample(self, batch_size: int) -> Tensor:
        """The whole piece, `[C, T, F]`; `batch_size` is of no use, as each window needs the one before it."""
        return self._made(self._empty(), torch.zeros(self._frames, dtype=torch.bool), self.writer(), self.noise)

    def fill(self, clean_CTF: Tensor, kept_T: Tensor, seen_S: Tensor, batch_size: int) -> Tensor:
        """Make the frames that are not kept.

        Args:
            clean_CTF: Latents of the sound that is kept.
            kept_T: Which frames are, in whole tokens.
            seen_S: The sound from the piece's start on, whose tokens are told where it is kept.
            batch_size: Of no use.

        Returns:
            The piece; kept frames are bit by bit as they were.
        """
        per, chunk = self.windows.frames_per_token, self.windows.chunk
        kept = self._kept_tokens(kept_T)
        # the end of a clip may lie within a token, whose sound is kept nowhere
        whole_S = torch.nn.functional.pad(seen_S, (0, -len(seen_S) % (per * self.frame_samples)))
        seen = self.conditioner.ids(whole_S[None].to(self.device), self.sample_rate_hz)[0].tolist()
        known = {number: token for number, token in enumerate(seen) if number < len(kept) and kept[number]}
        first, goes_on = int((~kept_T).nonzero()[0]), not bool(kept_T[int((~kept_T).nonzero()[0]) :].any())
        # a continuation of less than a chunk is cut from a chunk
        room = max(0, first + chunk - len(kept_T)) if goes_on and first else 0
        clean_CTF = torch.nn.functional.pad(clean_CTF, (0, 0, 0, room))
        held_T = torch.nn.functional.pad(kept_T, (0, room))
        return self._made(clean_CTF, held_T, self.writer(known), self.noise)[:, : len(kept_T)]

    def vary(self, clean_CTF: Tensor, batch_size: int) -> Tensor:
        """Make all of it anew from noised latents, under newly planned tokens."""
        noise = self.noise(INITIAL, 0, self._frames).to(clean_CTF)
        first = torch.tensor(self.stepper.timesteps[0], device=clean_CTF.device)
        start = self.stepper.process.add_noise(clean_CTF, noise, first)
        none_T = torch.zeros(self._frames, dtype=torch.bool)
        return self._made(self._empty(), none_T, self.writer(), _Started(start, self.noise))

    def front(self) -> ChunkFront:
        """The piece as it comes."""
        channels, _, bins = self.shape_CTF
        chunks = stream_piece(self.stepper, self.windows, self.writer().at, [self.noise],  # type: ignore[list-item]
                              (channels, bins), self.length, device=self.device)
        return ChunkFront(chunks, self.length)

    def change_at(self, begun: int) -> float | None:
        """Seconds from which another text can hold, of what a front has `begun`; None where nothing is left."""
        if self.length is not None and begun >= self.length:
            return None
        return begun * self.frame_s

    def writer(self, known: dict[int, int] | None = None) -> TokenWriter:
        """What writes the piece's tokens, from its start."""
        return self.conditioner.writer(self._told_at, known)

    def require_used_beside(self, kept_T: Tensor) -> None:
        """Refuse texts that nothing beside the frames that are kept, in whole tokens, would be written after.

        Raises:
            MusiccmError: There is such a text.
        """
        self.require_used([number for number, known in enumerate(self._kept_tokens(kept_T)) if not known])

    def _kept_tokens(self, kept_T: Tensor) -> list[bool]:
        return kept_T.view(-1, self.windows.frames_per_token).all(1).tolist()

    def require_used(self, numbers: Sequence[int] | None = None) -> None:
        """Refuse texts that none of the tokens, by default all, would be written after.

        Raises:
            MusiccmError: There is such a text.
        """
        starts = [start for start, _ in self.plan.entries]
        if numbers is None:
            per = self.windows.frames_per_token
            frames = self.length if self.length is not None else starts[-1] / self.frame_s + 2 * per
            numbers = range(math.ceil(frames / per))
        if (skipped := self.plan.unused(numbers, self._token_s)) is not None:
            start, text = skipped
            raise MusiccmError(f"prompts: {text!r} (from {start:g} s) would not be used: no music is made where it "
                               "holds; move the changes")

    def _token_s(self, number: int) -> float:
        return self.begin_s + (number + 0.5) * self.windows.frames_per_token * self.frame_s

    def _told_at(self, number: int) -> tuple[str, int]:
        index = self.plan.index_at(self._token_s(number))
        return self.plan.entries[index][1], self.seeds[min(index, len(self.seeds) - 1)]

    @property
    def _frames(self) -> int:
        assert self.length is not None
        return self.length

    def _empty(self) -> Tensor:
        channels, _, bins = self.shape_CTF
        return torch.zeros(channels, self._frames, bins, device=self.device)

    def _made(
        self, clean_CTF: Tensor, held_T: Tensor, writer: TokenWriter, noise: FrameNoise | SectionNoise | _Started
    ) -> Tensor:
        return fill_piece(self.stepper, self.windows, writer.at, [noise], clean_CTF[None], held_T)[0]  # type: ignore
