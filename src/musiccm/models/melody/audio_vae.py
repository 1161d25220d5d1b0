"""MeLoDy's audio VAE: a waveform to 16 channels at 250 Hz and back, without a spectrogram between.

Lam et al. 2023 (arXiv 2305.15719), appendix B.1. Nothing in it looks further than its convolutions, so that a piece can
be decoded while its latents still come in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder
from musiccm.models.melody.waveform_layers import GAIN, SLOPE, Conv, Fusion, Upsample, needed_by

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

SOUND_RMS = 0.1
"""What the initial weights take for the deviation of a waveform."""


@dataclass
class AudioVaeConfig:
    """Shape of an audio VAE; the defaults are MeLoDy's, as far as they are published.

    Rates, kernels, channels and the two totals (40 M, 60.1 M parameters) are. The residual blocks' kernels, dilations
    and numbers are not: those here come to 39.95 M and 60.27 M.

    Args:
        sample_rate_hz: Rate of the waveform.
        latent_channels: Channels of the latents.
        strides: Of the encoder's layers; their product is the samples of a latent frame.
        kernel_sizes: Of these layers, odd.
        channels: Behind each of them.
        depths: Fusions of residual blocks behind each of them.
        decoder_strides: Of the decoder's layers, of the same product.
        decoder_kernel_sizes: Of these layers.
        decoder_channels: Behind each of them; the first is also the width before them.
        decoder_depths: Fusions behind each of them.
        residual_kernel_sizes: Of the blocks that a fusion takes the mean of, odd.
        residual_dilations: Of each of these blocks.
        edge_kernel_size: Of the encoder's last layer and the decoder's first and last, odd.
        divisor: Latents are divided by it and clipped to [-1, 1].
        latents_mean: Mean of each channel of what comes of that, over training clips; none before it was measured.
        latents_std: Its deviation.
    """

    sample_rate_hz: int = 24000
    latent_channels: int = 16
    strides: list[int] = field(default_factory=lambda: [2, 3, 4, 4])
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 7, 9, 9])
    channels: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    depths: list[int] = field(default_factory=lambda: [4, 5, 7, 7])
    decoder_strides: list[int] = field(default_factory=lambda: [4, 4, 3, 2])
    decoder_kernel_sizes: list[int] = field(default_factory=lambda: [9, 9, 5, 7])
    decoder_channels: list[int] = field(default_factory=lambda: [768, 384, 192, 96])
    decoder_depths: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    residual_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7])
    residual_dilations: list[list[int]] = field(default_factory=lambda: [[1, 3, 5, 7], [1, 3, 5]])
    edge_kernel_size: int = 7
    divisor: float = 3.0
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None

    def check(self, where: str = "audio VAE: ") -> None:
        """Refuse numbers that do not fit together.

        Args:
            where: What the keys stand under, for messages.

        Raises:
            MusiccmError: Names the keys, and what was expected of them.
        """
        for stem in ("", "decoder_"):
            keys = [f"{stem}{key}" for key in ("strides", "kernel_sizes", "channels", "depths")]
            lists = [getattr(self, key) for key in keys]
            if not lists[0] or len({len(numbers) for numbers in lists}) > 1:
                raise MusiccmError(f"{where}expected lists of one length, a number for each layer, found "
                                   + ", ".join(f"{key} {numbers}" for key, numbers in zip(keys, lists, strict=True)))
            if any(number < low for numbers, low in zip(lists, (2, 1, 1, 0), strict=True) for number in numbers):
                raise MusiccmError(f"{where}expected {keys[0]} from 2, {keys[3]} from 0 and the others from 1, found "
                                   + ", ".join(f"{key} {numbers}" for key, numbers in zip(keys, lists, strict=True)))
        if math.prod(self.strides) != math.prod(self.decoder_strides):
            raise MusiccmError(f"{where}expected strides and decoder_strides of the same product, found {self.strides} "
                               f"({math.prod(self.strides)}) and {self.decoder_strides} "
                               f"({math.prod(self.decoder_strides)})")
        odd = [*self.kernel_sizes, *self.residual_kernel_sizes, self.edge_kernel_size]
        if any(size % 2 == 0 for size in odd):
            raise MusiccmError(f"{where}expected odd kernel_sizes, residual_kernel_sizes and edge_kernel_size, found "
                               f"{self.kernel_sizes}, {self.residual_kernel_sizes} and {self.edge_kernel_size}")
        if any(size < stride for size, stride in [*zip(self.kernel_sizes, self.strides, strict=True),
                                                  *zip(self.decoder_kernel_sizes, self.decoder_strides, strict=True)]):
            raise MusiccmError(f"{where}expected kernels at least as long as the strides, found kernel_sizes "
                               f"{self.kernel_sizes} and decoder_kernel_sizes {self.decoder_kernel_sizes}")
        if not self.residual_kernel_sizes or len(self.residual_kernel_sizes) != len(self.residual_dilations):
            raise MusiccmError(f"{where}expected dilations for each of residual_kernel_sizes, found "
                               f"{self.residual_kernel_sizes} and residual_dilations {self.residual_dilations}")
        if not (self.divisor > 0 and math.isfinite(self.divisor)):
            raise MusiccmError(f"{where}expected a divisor above 0, found {self.divisor}")
        mean, std = self.latents_mean, self.latents_std
        if (mean is None) != (std is None) or (mean is not None and std is not None and (
                not len(mean) == len(std) == self.latent_channels
                or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0)):
            raise MusiccmError(f"{where}expected latents_mean and latents_std, a number and one above 0 for each of "
                               f"{self.latent_channels} channels, or neither, found {mean} and {std}")


class Encoder(nn.Module):
    """Waveforms to the moments of the latents: strided convolutions, fusions of residual blocks behind each.

    Args:
        config: Shape.
    """

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        c, before = config, 1
        self.layers = nn.ModuleList()
        for stride, size, width, depth in zip(c.strides, c.kernel_sizes, c.channels, c.depths, strict=True):
            self.layers.append(Conv(before, width, size, stride, GAIN if before > 1 else 1.0 / SOUND_RMS))
            self.layers.extend(Fusion(width, c.residual_kernel_sizes, c.residual_dilations) for _ in range(depth))
            before = width
        self.layers.append(Conv(before, 2 * c.latent_channels, c.edge_kernel_size))

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Means and log variances, `[B, 2 C, T]`."""
        first, *rest = self.layers
        x_BCT = first(waveform_BS.unsqueeze(1))
        for layer in rest:
            x_BCT = layer(F.leaky_relu(x_BCT, SLOPE) if isinstance(layer, Conv) else x_BCT)
        return x_BCT


class Decoder(nn.Module):
    """Latents to waveforms: HiFi-GAN's generator.

    Args:
        config: Shape.
    """

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        c, before = config, config.decoder_channels[0]
        self.layers = nn.ModuleList([Conv(c.latent_channels, before, c.edge_kernel_size, gain=c.divisor)])
        layers = zip(c.decoder_strides, c.decoder_kernel_sizes, c.decoder_channels, c.decoder_depths, strict=True)
        for stride, size, width, depth in layers:
            self.layers.append(Upsample(before, width, size, stride))
            self.layers.extend(Fusion(width, c.residual_kernel_sizes, c.residual_dilations) for _ in range(depth))
            before = width
        self.layers.append(Conv(before, 1, c.edge_kernel_size, gain=SOUND_RMS))

    def forward(self, z_BCT: Tensor) -> Tensor:
        """Waveforms `[B, S]`, float32, within [-1, 1]."""
        first, *rest = self.layers
        x_BCT = first(z_BCT)
        for layer in rest:
            x_BCT = layer(x_BCT if isinstance(layer, Fusion) else F.leaky_relu(x_BCT, SLOPE))
        return torch.tanh(x_BCT.squeeze(1).float())


class AudioVae(nn.Module):
    """A waveform VAE, with the conventions of `LatentCodec` for what denoisers, samplers and caches take.

    Raw latents are what the encoder gives, `[B, C, T, 1]`. Normalised latents, written z, are what a denoiser sees and
    the decoder takes: `clip(raw / divisor, -1, 1)`, and once the moments of that are known
    (`latents_mean`, `latents_std`) of mean 0 and deviation 1 in every channel, as diffusion takes latents to be.

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: If its numbers do not fit together.
    """

    #: What its encoder takes: sound, where `LatentCodec`'s takes a mel.
    reads_mel = False
    #: Side of the blocks of raw latents that are one position of z: they are not folded.
    latent_patch = 1
    #: What makes sound of its latents, by the names of `Bundle.codec`: the autoencoder's own decoder.
    decoded_by = "original"

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AudioVaeConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = make_config(AudioVaeConfig, config)
        self.config.check()
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)
        channels = self.config.latent_channels
        self.register_buffer("latents_mean", torch.zeros(1, channels, 1, 1), persistent=False)
        self.register_buffer("latents_std", torch.ones(1, channels, 1, 1), persistent=False)
        if self.config.latents_mean is not None and self.config.latents_std is not None:
            self.set_moments(torch.tensor(self.config.latents_mean), torch.tensor(self.config.latents_std))

    @property
    def frame_samples(self) -> int:
        """Samples that a latent frame covers."""
        return math.prod(self.config.strides)

    @property
    def shortest_samples(self) -> int:
        """Samples of the shortest sound that it encodes."""
        return self.frame_samples

    def raw_latents(self) -> dict[str, int]:
        """Channels and bins of its latents, and samples a frame of them covers: as a fast decoder's keys."""
        return {"latent_channels": self.config.latent_channels, "latent_bins": 1, "latent_hop": self.frame_samples}

    @property
    def receptive_field(self) -> int:
        """Latent frames on either side that a latent frame's sound depends on."""
        first, last = needed_by(list(self.decoder.layers), (0, self.frame_samples - 1))
        return max(-first, last)

    @property
    def decoder_context(self) -> int:
        """The receptive field, by the name that `long_form.DirectDecoder` knows it by."""
        return self.receptive_field

    @property
    def encoder_receptive_field(self) -> int:
        """Latent frames' worth of samples on either side of its own that a latent frame depends on."""
        first, last = needed_by(list(self.encoder.layers), (0, 0))
        return -(-max(-first, last + 1 - self.frame_samples) // self.frame_samples)

    def latent_shape(self, duration_s: float) -> tuple[int, int, int]:
        """The [C, T, F] of the z that holds at least `duration_s` seconds."""
        samples = math.ceil(duration_s * self.config.sample_rate_hz - 1e-6)
        return self.config.latent_channels, -(-samples // self.frame_samples), 1

    def to_grid(self, waveform_BS: Tensor) -> Tensor:
        """Waveforms with zeros behind them, up to whole latent frames: `T = ceil(S / frame_samples)`."""
        return F.pad(waveform_BS, (0, -waveform_BS.shape[-1] % self.frame_samples))

    def posterior(self, waveform_BS: Tensor) -> DiagonalGaussianDistribution:
        """The distribution of the raw latents, `[B, C, T, 1]`, float32; gradients flow to the encoder.

        Args:
            waveform_BS: Mono waveforms at the configuration's rate, of whole latent frames.

        Returns:
            diffusers' distribution, with `mean`, `std` and `logvar`.

        Raises:
            MusiccmError: Another shape or length.
        """
        # which decoding does without
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        if waveform_BS.dim() != 2:
            raise MusiccmError(f"audio VAE: expected mono waveforms of shape [B, S], found {tuple(waveform_BS.shape)}; "
                               "mix the channels of a clip to one first")
        samples, hop = waveform_BS.shape[1], self.frame_samples
        if samples == 0 or samples % hop:
            shorter, longer = samples // hop * hop, (samples // hop + 1) * hop
            cropping = f"crop to {shorter} samples or " if shorter else ""
            raise MusiccmError(f"audio VAE: expected a length that is a multiple of {hop} samples, a latent frame, "
                               f"found {samples}; {cropping}pad to {longer} (`to_grid`)")
        return DiagonalGaussianDistribution(self.encoder(waveform_BS).float().unsqueeze(-1))

    def encode(self, waveform_BS: Tensor, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
        """Encode waveforms.

        Args:
            waveform_BS: Mono waveforms of whole latent frames.
            sample_rate_hz: Their rate.

        Returns:
            Mean and standard deviation of the raw latents' posterior, each `[B, C, T, 1]`.

        Raises:
            MusiccmError: Another rate than the configuration's, another shape or length.
        """
        self.check_rate(sample_rate_hz)
        posterior = self.posterior(waveform_BS)
        return posterior.mean, posterior.std

    def check_rate(self, sample_rate_hz: int, where: str = "audio VAE: ") -> None:
        """Refuse sound of another rate.

        Args:
            sample_rate_hz: Its rate.
            where: What it was read from, for the message.

        Raises:
            MusiccmError: Names both rates.
        """
        if sample_rate_hz != self.config.sample_rate_hz:
            raise MusiccmError(f"{where}expected sound at {self.config.sample_rate_hz} Hz, found {sample_rate_hz} Hz; "
                               "resample it first")

    def normalise(self, raw_BCTF: Tensor) -> Tensor:
        """The z of raw latents."""
        return (self.bounded(raw_BCTF) - self.latents_mean) / self.latents_std

    def standardise(self, raw_BCTF: Tensor) -> Tensor:
        """The same: what a fast decoder takes."""
        return self.normalise(raw_BCTF)

    def bounded(self, raw_BCTF: Tensor) -> Tensor:
        """Raw latents divided and clipped to [-1, 1]: what the decoder's first layer sees."""
        return (raw_BCTF / self.config.divisor).clamp(-1.0, 1.0)

    def denormalise(self, z_BCTF: Tensor) -> Tensor:
        """Raw latents of z."""
        return (z_BCTF * self.latents_std + self.latents_mean) * self.config.divisor

    def clipped(self, raw_BCTF: Tensor) -> Tensor:
        """The share of raw latents that `normalise` clips, a scalar."""
        return (raw_BCTF.abs() > self.config.divisor).float().mean()

    def decode(self, z_BCTF: Tensor) -> Tensor:
        """Turn z into sound; what lies beyond what `normalise` gives is clipped, as it was in training.

        Args:
            z_BCTF: Normalised latents `[B, C, T, 1]`.

        Returns:
            Waveforms `[B, T * frame_samples]`, float32, within [-1, 1].

        Raises:
            MusiccmError: If the latents are of another shape.
        """
        channels = self.config.latent_channels
        if z_BCTF.dim() != 4 or z_BCTF.shape[1] != channels or z_BCTF.shape[3] != 1:
            raise MusiccmError(f"audio VAE: expected latents of shape [B, {channels}, T, 1], found "
                               f"{tuple(z_BCTF.shape)}")
        return self.sound((z_BCTF * self.latents_std + self.latents_mean).clamp(-1.0, 1.0))

    def sound(self, bounded_BCTF: Tensor) -> Tensor:
        """Waveforms of latents as `bounded` gives them."""
        return self.decoder(bounded_BCTF.squeeze(3))

    @torch.no_grad()
    def set_divisor(self, divisor: float) -> None:
        """Take another divisor; what is not clipped by either is decoded as before. Moments are to be measured anew.

        Args:
            divisor: Above 0.

        Raises:
            MusiccmError: It is not.
        """
        old, self.config.divisor = self.config.divisor, divisor
        self.config.check()
        self.decoder.layers[0].weight.mul_(divisor / old)
        self.config.latents_mean = self.config.latents_std = None
        self.latents_mean.zero_()
        self.latents_std.fill_(1.0)

    @torch.no_grad()
    def set_moments(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Give z mean 0 and deviation 1.

        Args:
            mean_C: Mean of each channel of `bounded` latents.
            std_C: Their deviation, above 0.

        Raises:
            MusiccmError: They are not numbers of that kind, one a channel.
        """
        self.config.latents_mean, self.config.latents_std = mean_C.tolist(), std_C.tolist()
        self.config.check()
        self.latents_mean.copy_(mean_C.view(1, -1, 1, 1))
        self.latents_std.copy_(std_C.view(1, -1, 1, 1))

    @torch.no_grad()
    def start_posterior_at(self, std: float) -> None:
        """Give every posterior of an untrained VAE the same standard deviation."""
        head, channels = self.encoder.layers[-1], self.config.latent_channels
        head.weight[channels:].zero_()
        head.bias[channels:].fill_(2.0 * math.log(std))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_weights_folder(folder, {"_class_name": "AudioVae", **asdict(self.config)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AudioVae:
        """Read a folder written by `save_pretrained`; the VAE comes in eval mode.

        Raises:
            MusiccmError: If a file is missing or the two do not belong together.
        """
        config = make_config(AudioVaeConfig, read_config(folder), f"{folder}/config.json")
        config.check(f"{folder}/config.json: ")
        vae = cls(config)
        load_weights(vae, folder)
        return vae.eval()
