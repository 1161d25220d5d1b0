"""Latents straight to sound: one small network in place of VAE decoder and vocoder.

A ConvNeXt backbone at the rate of the spectrogram's frames with an inverse-STFT head, as Vocos has (Siuzdak 2023,
arXiv 2306.00814). Nothing in it looks further than its convolutions reach, so that sound can be made while latents
still come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.errors import MusiccmError
from musiccm.models.acceleration.half import bf16_products
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder


@dataclass
class FastDecoderConfig:
    """Shape of a fast decoder; the defaults fit the released MusicLDM.

    Args:
        latent_channels: Channels of the raw latents.
        latent_bins: Their frequency bins; channels times bins are one frame of the input.
        latent_hop: Samples a latent frame covers.
        hop_length: Samples between frames of the head; divides `latent_hop`.
        n_fft: Points of the head's inverse Fourier transform.
        width: Channels of the backbone.
        hidden: Channels within a block.
        latent_blocks: Blocks at the rate of the latents.
        blocks: Blocks at the rate of the head.
        kernel_size: Of a block's convolution over time, odd.
    """

    latent_channels: int = 8
    latent_bins: int = 16
    latent_hop: int = 640
    hop_length: int = 160
    n_fft: int = 1024
    width: int = 512
    hidden: int = 1536
    latent_blocks: int = 2
    blocks: int = 8
    kernel_size: int = 7


class _Block(nn.Module):
    """ConvNeXt block over time: depthwise convolution, layer norm, two pointwise layers, layer scale, residual."""

    def __init__(self, width: int, hidden: int, kernel_size: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x_BWT: Tensor) -> Tensor:
        y = self.norm(self.mix(x_BWT).transpose(1, 2))
        return x_BWT + (self.scale * self.narrow(F.gelu(self.widen(y)))).transpose(1, 2)


class FastDecoder(nn.Module):
    """Raw latents, standardised channel by channel, to a waveform.

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: If the hops do not divide, or the kernel is even.
    """

    def __init__(self, config: FastDecoderConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = c = make_config(FastDecoderConfig, config)
        if c.latent_hop % c.hop_length or c.n_fft % 2 or c.n_fft < c.hop_length or c.kernel_size % 2 == 0:
            raise MusiccmError(f"fast decoder: expected an odd kernel_size, an even n_fft >= hop_length that divides "
                               f"latent_hop, found kernel_size {c.kernel_size}, n_fft {c.n_fft}, hop_length "
                               f"{c.hop_length}, latent_hop {c.latent_hop}")
        self.factor = c.latent_hop // c.hop_length
        scale = 1.0 / (c.latent_blocks + c.blocks)
        self.embed = nn.Conv1d(c.latent_channels * c.latent_bins, c.width, 3, padding=1)
        self.slow = nn.Sequential(
            *[_Block(c.width, c.hidden, c.kernel_size, scale) for _ in range(c.latent_blocks)]
        )
        self.expand = nn.Linear(c.width, c.width * self.factor)
        self.fast = nn.Sequential(*[_Block(c.width, c.hidden, c.kernel_size, scale) for _ in range(c.blocks)])
        self.norm = nn.LayerNorm(c.width)
        self.head = nn.Linear(c.width, c.n_fft + 2)

    @property
    def receptive_field(self) -> int:
        """Latent frames on either side that a latent frame's sound depends on."""
        c, side = self.config, self.config.kernel_size // 2
        samples = side * c.blocks * c.hop_length + c.n_fft // 2
        return 1 + side * c.latent_blocks + -(-samples // c.latent_hop)

    def check_latents(self, given: Mapping[str, int], where: str) -> None:
        """Refuse other latents than those that it was made for.

        Args:
            given: Channels, bins and hop of the autoencoder's latents, by the configuration's names.
            where: What its configuration was read from, as the message begins.

        Raises:
            MusiccmError: Names the first number that differs.
        """
        for key, expected in given.items():
            found = getattr(self.config, key)
            if found != expected:
                raise MusiccmError(f"{where}{key} is {found}, but the VAE's latents have {expected}; the decoder must "
                                   "be trained for this VAE")

    def forward(self, latents_BCTF: Tensor) -> Tensor:
        """Decode.

        Args:
            latents_BCTF: Raw latents with zero mean and unit deviation a channel, `[B, C, T, F]`.

        Returns:
            Waveforms `[B, T * latent_hop]`, float32.

        Raises:
            MusiccmError: If channels or bins are not the configuration's.
        """
        c = self.config
        if latents_BCTF.shape[1] != c.latent_channels or latents_BCTF.shape[3] != c.latent_bins:
            raise MusiccmError(f"fast decoder: expected latents of {c.latent_channels} channels and {c.latent_bins} "
                               f"bins, found shape {tuple(latents_BCTF.shape)}")
        x_BWT = self.slow(self.embed(latents_BCTF.transpose(2, 3).flatten(1, 2)))
        x_BTW = self.expand(x_BWT.transpose(1, 2)).unflatten(2, (self.factor, c.width)).flatten(1, 2)
        x_BTW = self.norm(self.fast(x_BTW.transpose(1, 2)).transpose(1, 2))
        return self.synthesise(self.head(x_BTW).float())

    def synthesise(self, heads_BTH: Tensor) -> Tensor:
        """Inverse STFT of log-magnitudes and phases, `hop_length` samples a frame, the frame's centre in its middle."""
        c = self.config
        log_magnitude, phase = heads_BTH.chunk(2, dim=-1)
        # exp(6) is louder than any frame of a waveform within [-1, 1] can be at this size by far
        magnitude = log_magnitude.clamp(max=6.0).exp()
        # `torch.polar` computes one element at a time on a CPU
        spectrum = torch.view_as_complex(torch.stack((magnitude * phase.cos(), magnitude * phase.sin()), dim=-1))
        # not a buffer, which a decoder in bf16 would round
        window = torch.hann_window(c.n_fft, device=heads_BTH.device)
        frames = torch.fft.irfft(spectrum, c.n_fft, norm="ortho") * window
        # the sum of the squared windows that overlap at each sample
        envelope = overlap_add(window.square().expand(1, heads_BTH.shape[1], -1), c.hop_length)[0]
        return overlap_add(frames, c.hop_length) / envelope.clamp(min=1e-3)

    def with_bf16_blocks(self) -> FastDecoder:
        """A copy that computes the products of its blocks, nine tenths of its work, in bf16.

        `embed`, `expand` and `head` stay in float32, as do the blocks' sums, norms and convolutions over time: the
        sound of the packaged bundles then differs by 57 dB less than the signal. With all products in bf16 it is 44 dB,
        of which the head, whose phases are rounded, makes 46 alone.

        Returns:
            The copy, which shares all other weights.
        """
        return bf16_products(self, kept=("expand", "head"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_weights_folder(folder, {"_class_name": "FastDecoder", **asdict(self.config)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FastDecoder:
        """Read a folder written by `save_pretrained`; the decoder comes in eval mode.

        Raises:
            MusiccmError: If a file is missing or the two do not belong together.
        """
        decoder = cls(make_config(FastDecoderConfig, read_config(folder), f"{folder}/config.json"))
        load_weights(decoder, folder)
        return decoder.eval()


def overlap_add(frames_BTS: Tensor, hop_length: int) -> Tensor:
    """Add frames up, `hop_length` apart, and cut what the first and the last stand out by.

    Args:
        frames_BTS: Frames, `[B, T, n_fft]`.
        hop_length: Samples between their starts.

    Returns:
        `[B, T * hop_length]`; sample 0 lies `(n_fft - hop_length) / 2` into the first frame.
    """
    frames, size = frames_BTS.shape[1:]
    parts = -(-size // hop_length)  # of a hop each, of which a hop of the sound has one from each of so many frames
    row, step = parts * hop_length, (parts - 1) * hop_length
    width = max(step, hop_length)
    rows = F.pad(frames_BTS, (0, row - size, parts - 1, parts - 1)).flatten(1)
    # the last part of one frame, the last but one of the next, and so on: a row less a hop further in memory each time
    aligned = rows[:, step:].unfold(1, parts * width, row).unflatten(2, (parts, width))[..., :hop_length]
    start = (size - hop_length) // 2
    return aligned.sum(dim=2).flatten(1)[:, start : start + frames * hop_length]
