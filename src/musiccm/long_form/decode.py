"""Between the latents of a long piece and its sound, in windows, so that memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from musiccm.models.codec import LatentCodec
from musiccm.samplers import Crops, fade_profile

OVERLAP_SHARE = 4
"""Neighbouring windows of the VAE share a 4th of their length: a quarter of that is dropped on either side, and in the
half that is left one mel fades into the other."""


class MelDecoder:
    """Turns latents into mel frames as they come.

    The VAE's decoder normalises over its whole input, so what it gives depends on how much it is shown. It is therefore
    always shown windows of one size, the length it was trained on, at fixed places of the piece; their mels are
    faded into each other. So the mel does not depend on how the latents arrive.

    Args:
        codec: The VAE.
        window: Latent frames of a window.
        length: Latent frames of the piece, at least `window`; None without end.
        batch_size: Windows decoded at once.
    """

    def __init__(self, codec: LatentCodec, window: int, length: int | None, batch_size: int = 1) -> None:
        self.codec = codec
        self.batch_size = batch_size
        per = codec.downsampling
        overlap = window // OVERLAP_SHARE
        self.crops = Crops(length, window, window - overlap)
        self._mel_crops = Crops(None if length is None else length * per, window * per, self.crops.hop * per)
        self._profile = fade_profile(window * per, overlap * per // 4, overlap * per // 2)
        self._done = 0  # windows
        self._z: Tensor | None = None
        self._first = 0  # latent frame that `_z` and `_mel` begin at
        self._mel: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether the whole piece has been handed out."""
        return not self.crops.exists(self._done)

    def push(self, z_CTF: Tensor) -> Iterator[Tensor]:
        """Take the next latents of the piece.

        Args:
            z_CTF: Normalised latents `[C, frames, F]`, any number of frames.

        Yields:
            Mel frames that became certain, `[M, N]`, float32, in order; each piece depends on its place alone.
        """
        self._z = z_CTF if self._z is None else torch.cat([self._z, z_CTF], dim=1)
        while ready := self._ready(self._z.shape[1]):
            yield self._decode(ready)

    def _ready(self, frames: int) -> list[int]:
        wanted = range(self._done, self._done + self.batch_size)
        return [i for i in wanted
                if self.crops.exists(i) and self.crops.start(i) + self.crops.window <= self._first + frames]

    @torch.no_grad()
    def _decode(self, ready: list[int]) -> Tensor:
        """Decode some windows, lay their mels over those before, and cut off what no later window reaches."""
        assert self._z is not None
        window, per = self.crops.window, self.codec.downsampling
        starts = [self.crops.start(i) - self._first for i in ready]
        mels = self.codec.decode_mel(torch.stack([self._z[:, start : start + window] for start in starts])).float()
        mel = mels.new_zeros(0, mels.shape[-1]) if self._mel is None else self._mel
        mel = torch.cat([mel, mels.new_zeros((starts[-1] + window) * per - len(mel), mels.shape[-1])])
        for i, start, mel_MN in zip(ready, starts, mels, strict=True):
            share = self._mel_crops.share(i, self._profile).to(mel_MN)[:, None]
            mel[start * per : (start + window) * per] += share * mel_MN
        self._done = ready[-1] + 1
        settled = self.crops.settled(self._done)
        keep = settled - self._first
        self._z, self._mel, self._first = self._z[:, keep:].clone(), mel[keep * per :].clone(), settled
        return mel[: keep * per]


class PieceDecoder:
    """Turns latents into sound as they come.

    The vocoder sees a bounded number of frames: chunks with that much context, cut off afterwards, are the very sound
    of the whole.

    Args:
        codec: VAE and vocoder.
        window: See `MelDecoder`.
        length: See `MelDecoder`.
        batch_size: See `MelDecoder`.
    """

    def __init__(self, codec: LatentCodec, window: int, length: int | None, batch_size: int = 1) -> None:
        self.codec = codec
        self.mels = MelDecoder(codec, window, length, batch_size)
        self._context = codec.vocoder_context
        self._mel: Tensor | None = None
        self._emitted = 0  # frames at the start of `_mel` that are sound already

    @torch.no_grad()
    def push(self, z_CTF: Tensor) -> Tensor:
        """Take the next latents of the piece.

        Args:
            z_CTF: Normalised latents `[C, frames, F]`, any number of frames.

        Returns:
            The sound that became certain, `[S]`, float32 on the CPU; often empty.
        """
        return torch.cat([torch.empty(0), *(self._emit(mel_MN) for mel_MN in self.mels.push(z_CTF))])

    def _emit(self, mel_MN: Tensor) -> Tensor:
        """Vocode the frames whose whole context is there."""
        mel = mel_MN if self._mel is None else torch.cat([self._mel, mel_MN])
        end = len(mel) if self.mels.finished else len(mel) - self._context
        first = max(0, self._emitted - self._context)
        self._mel = mel
        if end <= self._emitted:
            return torch.empty(0)
        hop = self.codec.mel.hop_length
        sound_S = self.codec.vocode(mel[None, first:])[0, (self._emitted - first) * hop : (end - first) * hop]
        keep = max(0, end - self._context)
        self._mel, self._emitted = mel[keep:].clone(), end - keep
        return sound_S.float().cpu()


@torch.no_grad()
def encode_piece(codec: LatentCodec, mel_MN: Tensor, window: int) -> Tensor:
    """Latents of a mel of any length: encoded in windows of the trained length and faded into each other.

    Args:
        codec: The VAE.
        mel_MN: Log-mel; the number of frames a multiple of `codec.downsampling`.
        window: Latent frames of a window.

    Returns:
        Normalised latents `[C, T, F]`, the posterior's mean.
    """
    per = codec.downsampling
    length = mel_MN.shape[0] // per
    if length <= window:
        return codec.normalise(codec.encode(mel_MN[None])[0])[0].float()
    overlap = window // OVERLAP_SHARE
    crops = Crops(length, window, window - overlap)
    profile = fade_profile(window, overlap // 4, overlap // 2)
    assert crops.count is not None
    whole: Tensor | None = None
    for i in range(crops.count):
        start = crops.start(i)
        part = codec.normalise(codec.encode(mel_MN[None, start * per : (start + window) * per])[0])[0].float()
        if whole is None:
            whole = part.new_zeros(part.shape[0], length, part.shape[2])
        whole[:, start : start + window] += crops.share(i, profile)[:, None].to(part) * part
    assert whole is not None
    return whole
