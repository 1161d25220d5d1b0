"""Between the latents of a long piece and its sound, in windows, so that memory does not grow with length."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.models.codec import LatentCodec
from musiccm.samplers import Crops, fade_profile

OVERLAP_SHARE = 4
"""Neighbouring windows of the VAE share a 4th of their length: a quarter of that is dropped on either side, and in the
half that is left one mel fades into the other."""


class PieceDecoder:
    """Turns latents into sound as they come.

    The VAE's decoder normalises over its whole input, so what it gives depends on how much it is shown. It is therefore
    always shown windows of one size, the length it was trained on, at fixed places of the piece; their mels are
    faded into each other. The vocoder sees a bounded number of frames: chunks with that much context, cut off
    afterwards, are the very sound of the whole. So the sound does not depend on how the latents arrive.

    Args:
        codec: VAE and vocoder.
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
        self.mel_crops = Crops(None if length is None else length * per, window * per, self.crops.hop * per)
        self._profile = fade_profile(window * per, overlap * per // 4, overlap * per // 2)
        self._context = codec.vocoder_context
        self._done = 0  # windows
        self._z: Tensor | None = None
        self._z_first = 0  # latent frame
        self._mel: Tensor | None = None
        self._mel_first = 0  # mel frame
        self._spoken = 0  # mel frames that are sound already

    @torch.no_grad()
    def push(self, z_CTF: Tensor) -> Tensor:
        """Take the next latents of the piece.

        Args:
            z_CTF: Normalised latents `[C, frames, F]`, any number of frames.

        Returns:
            The sound that became certain, `[S]`, float32 on the CPU; often empty.
        """
        self._z = z_CTF if self._z is None else torch.cat([self._z, z_CTF], dim=1)
        sound = [torch.empty(0)]
        while ready := self._ready():
            self._decode(ready)
            sound.append(self._speak())
        return torch.cat(sound)

    def _ready(self) -> list[int]:
        assert self._z is not None
        here = self._z_first + self._z.shape[1]
        window = self.crops.window
        candidates = range(self._done, self._done + self.batch_size)
        return [i for i in candidates if self.crops.exists(i) and self.crops.start(i) + window <= here]

    def _decode(self, ready: list[int]) -> None:
        """Decode some windows and lay their mels over those of the windows before."""
        assert self._z is not None
        window, per = self.crops.window, self.codec.downsampling
        starts = [self.crops.start(i) - self._z_first for i in ready]
        mels = self.codec.decode_mel(torch.stack([self._z[:, start : start + window] for start in starts])).float()
        end = (self.crops.start(ready[-1]) + window) * per
        if self._mel is None:
            self._mel = mels.new_zeros(0, mels.shape[-1])
        missing = end - self._mel_first - len(self._mel)
        self._mel = torch.cat([self._mel, mels.new_zeros(missing, mels.shape[-1])])
        for i, mel_MN in zip(ready, mels, strict=True):
            first = self.mel_crops.start(i) - self._mel_first
            share = self.mel_crops.share(i, self._profile).to(mel_MN)[:, None]
            self._mel[first : first + window * per] += share * mel_MN
        self._done = ready[-1] + 1
        keep = self.crops.settled(self._done)
        self._z, self._z_first = self._z[:, keep - self._z_first :].clone(), keep

    def _speak(self) -> Tensor:
        """Vocode the mel frames whose whole context is certain."""
        assert self._mel is not None
        settled = self.mel_crops.settled(self._done)
        end = settled if not self.crops.exists(self._done) else settled - self._context
        if end <= self._spoken:
            return torch.empty(0)
        first, last = max(0, self._spoken - self._context), min(end + self._context, settled)
        mel_MN = self._mel[first - self._mel_first : last - self._mel_first]
        hop = self.codec.mel.hop_length
        sound_S = self.codec.vocode(mel_MN[None])[0, (self._spoken - first) * hop : (end - first) * hop]
        self._spoken = end
        keep = max(0, end - self._context)
        self._mel, self._mel_first = self._mel[keep - self._mel_first :].clone(), keep
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
