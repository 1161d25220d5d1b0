"""Sound of a long piece by a decoder that needs neither windows nor fades, as it sees a bounded stretch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from musiccm.long_form.decode import PieceDecoder
from musiccm.models.codec import LatentCodec
from musiccm.models.melody.audio_vae import AudioVae


class DirectDecoder:
    """Turns latents into sound as they come, by the codec's fast decoder or an audio VAE's.

    Chunks are decoded with the decoder's receptive field, which is cut off afterwards: the very sound of the
    whole, however the latents arrive.

    Args:
        codec: With a fast decoder, or an audio VAE.
        window: Latent frames decoded at once, beside the context.
        length: Latent frames of the piece; None without end.
    """

    def __init__(self, codec: LatentCodec | AudioVae, window: int, length: int | None) -> None:
        self.codec, self.window, self.length = codec, window, length
        self._context = codec.decoder_context
        self._z: Tensor | None = None
        self._first = 0  # latent frame that `_z` begins at
        self._emitted = 0  # latent frames that are sound already

    @torch.no_grad()
    def push(self, z_CTF: Tensor) -> Tensor:
        """Take the next latents of the piece.

        Args:
            z_CTF: Normalised latents `[C, frames, F]`, any number of frames.

        Returns:
            The sound that became certain, `[S]`, float32 on the CPU; often empty.
        """
        self._z = z_CTF if self._z is None else torch.cat([self._z, z_CTF], dim=1)
        known = self._first + self._z.shape[1]
        certain = known if known == self.length else known - self._context
        sounds = [torch.empty(0)]
        while self._emitted < certain:
            sounds.append(self._emit(min(certain, self._emitted + self.window)))
        keep = max(0, self._emitted - self._context)
        self._z, self._first = self._z[:, keep - self._first :].clone(), keep
        return torch.cat(sounds)

    def _emit(self, end: int) -> Tensor:
        """Sound of the frames from what has been emitted to `end`."""
        assert self._z is not None
        first = max(self._first, self._emitted - self._context)
        shown = self._z[None, :, first - self._first : end + self._context - self._first]
        hop = self.codec.frame_samples
        sound_S = self.codec.decode(shown)[0, (self._emitted - first) * hop : (end - first) * hop]
        self._emitted = end
        return sound_S.float().cpu()


class Decoding(Protocol):
    """What turns a piece's latents into sound as they come."""

    def push(self, z_CTF: Tensor) -> Tensor:
        """Latents `[C, frames, F]` in, the sound that became certain `[S]` out."""


def piece_decoder(
    codec: LatentCodec | AudioVae, window: int, length: int | None, batch_size: int = 1
) -> Decoding:
    """The decoder of a long piece that fits a codec.

    Args:
        codec: With a fast decoder, or with VAE and vocoder; or an audio VAE.
        window: Latent frames of a window, the length that the VAE was trained on.
        length: Latent frames of the piece, at least `window`; None without end.
        batch_size: The VAE's windows decoded at once.

    Returns:
        The decoder.
    """
    if isinstance(codec, AudioVae) or codec.decoder is not None:
        return DirectDecoder(codec, window, length)
    return PieceDecoder(codec, window, length, batch_size)
