"""Latents of sound that is there, in windows, so that memory does not grow with length."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.mel import MEL_FLOOR, LogMel
from musiccm.long_form.decode import encode_piece
from musiccm.models.codec import LatentCodec
from musiccm.models.melody.audio_vae import AudioVae


def encode_sound(
    codec: LatentCodec | AudioVae, waveform_S: Tensor, length: int, window: int, device: torch.device,
    silence: bool = False,
) -> Tensor:
    """Latents of sound of any length.

    Args:
        codec: What encodes it.
        waveform_S: Sound at the model's rate.
        length: Latent frames wanted, at least those of the sound.
        window: Latent frames of a window.
        device: Where the codec is.
        silence: Whether the sound is followed by silence; by zeros that nobody reads otherwise.

    Returns:
        Normalised latents `[C, length, F]`, the posterior's mean.
    """
    encode = _by_sound if isinstance(codec, AudioVae) else _by_mel
    z_CTF = encode(codec, waveform_S, length, window, device, silence)  # type: ignore[arg-type]
    return F.pad(z_CTF, (0, 0, 0, length - z_CTF.shape[1]))


def _by_mel(
    codec: LatentCodec, waveform_S: Tensor, length: int, window: int, device: torch.device, silence: bool
) -> Tensor:
    per = codec.downsampling
    mel_MN = LogMel(codec.mel)(waveform_S)[: length * per]
    if silence:
        mel_MN = F.pad(mel_MN, (0, 0, 0, length * per - len(mel_MN)), value=math.log(MEL_FLOOR))
    elif len(mel_MN) % per:
        mel_MN = torch.cat([mel_MN, mel_MN[-1:].expand(per - len(mel_MN) % per, -1)])
    return encode_piece(codec, mel_MN.to(device), window)


@torch.no_grad()
def _by_sound(
    codec: AudioVae, waveform_S: Tensor, length: int, window: int, device: torch.device, silence: bool
) -> Tensor:
    """By an encoder that sees a bounded stretch: with that on either side, cut off afterwards, a window is as whole."""
    hop, context = codec.frame_samples, codec.encoder_receptive_field
    sound_S = codec.to_grid(F.pad(waveform_S, (0, length * hop - len(waveform_S))) if silence else waveform_S)
    frames, found = len(sound_S) // hop, []
    for start in range(0, frames, window):
        first, stop = max(0, start - context), min(frames, start + window)
        shown_BS = sound_S[None, first * hop : min(frames, stop + context) * hop].to(device)
        z_BCTF = codec.normalise(codec.encode(shown_BS, codec.config.sample_rate_hz)[0])
        found.append(z_BCTF[0, :, start - first : stop - first])
    return torch.cat(found, dim=1)
