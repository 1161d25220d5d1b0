"""Between sound and latents: mel, VAE, vocoder and fast decoder behind one door."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.fast_decoder import FastDecoder


class LatentCodec(nn.Module):
    """A frozen `AutoencoderKL` and what makes sound of its latents, with the conventions that connect them.

    The mel enters the VAE as an image of height M (time) and width N (bins), pixel-unshuffled by
    `isqrt(vae.in_channels)`: 1 for MusicLDM. Raw latents are what the encoder gives; normalised latents, written z, are
    what the U-Net sees: `(raw - latents_mean) / latents_std` where the VAE's configuration has them, else
    `raw * scaling_factor` (MusicLDM). With a `latent_patch` p, blocks of p x p raw latents become channels of z, as in
    Flux: p^2 times fewer positions for the U-Net, without a deeper VAE, which is much harder to train.

    Args:
        vae: A diffusers `AutoencoderKL`; None where nothing is encoded, and decoded by `decoder` alone.
        vocoder: A transformers `SpeechT5HifiGan`, or None where no waveform is asked for.
        mel: Numbers of the mel front end.
        latent_patch: Side p of the blocks of raw latents that are one position of z.
        decoder: A fast decoder of this VAE's latents, which `decode` then uses in place of VAE and vocoder.
        config: The VAE's configuration, where there is none: in_channels, block_out_channels, latent_channels,
            scaling_factor, latents_mean and latents_std.

    Raises:
        MusiccmError: If the VAE's channels are no square, vocoder and mel disagree, or the decoder takes other latents.
    """

    #: What its encoder takes.
    reads_mel = True

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        vae: nn.Module | None,
        vocoder: nn.Module | None = None,
        mel: MelConfig | None = None,
        latent_patch: int = 1,
        decoder: FastDecoder | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.latent_patch = latent_patch
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.vocoder = None if vocoder is None else vocoder.eval().requires_grad_(False)
        self.decoder = None if decoder is None else decoder.eval().requires_grad_(False)
        self.mel = mel or MelConfig()
        config = config if vae is None else vae.config
        self.patch = math.isqrt(config.in_channels)
        if self.patch**2 != config.in_channels:
            raise MusiccmError(f"vae/config.json: in_channels is {config.in_channels}; expected the square of the "
                               "patch that the mel is unshuffled by (1, 4, 16, ...)")
        if vocoder is not None and vocoder.config.model_in_dim != self.mel.n_mels:
            raise MusiccmError(f"vocoder/config.json: model_in_dim is {vocoder.config.model_in_dim}, but the mel has "
                               f"{self.mel.n_mels} bins; they must be equal")
        self.downsampling = latent_patch * self.patch * 2 ** (len(config.block_out_channels) - 1)
        self.raw_channels = raw_channels = config.latent_channels
        self.latent_channels = raw_channels * latent_patch**2
        mean, std = torch.zeros(raw_channels), torch.full((raw_channels,), 1.0 / config.scaling_factor)
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        if decoder is not None:
            decoder.check_latents(self.raw_latents(), "decoder/config.json: ")
        self.register_buffer("latents_mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("latents_std", std.view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> LatentCodec:
        """Stay in eval mode: the codec is frozen, whatever module holds it."""
        return super().train(False)

    def raw_latents(self) -> dict[str, int]:
        """Channels and frequency bins of the VAE's latents, and samples a frame of them covers: as a decoder's keys."""
        factor = self.downsampling // self.latent_patch
        return {"latent_channels": self.raw_channels, "latent_bins": self.mel.n_mels // factor,
                "latent_hop": self.mel.hop_length * factor}

    @property
    def frame_samples(self) -> int:
        """Samples that a frame of z covers."""
        return self.downsampling * self.mel.hop_length

    @property
    def shortest_samples(self) -> int:
        """Samples of the shortest sound that can be encoded: a frame, and what the mel's mirrored edges need."""
        return max(self.frame_samples, self.mel.n_fft // 2 + 1)

    @property
    def decoded_by(self) -> str:
        """What makes its sound, by the names of `Bundle.codec`: `fast` or `original`."""
        return "original" if self.decoder is None else "fast"

    def encode(self, mel_BMN: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a mel.

        Args:
            mel_BMN: Natural-log mel; M and N multiples of `downsampling`.

        Returns:
            Mean and standard deviation of the raw latents' posterior, each [B, C / p^2, p T, p F].

        Raises:
            MusiccmError: If the shape does not fit the VAE, or this codec was built without one.
        """
        vae = self._require_vae()
        frames, bins = mel_BMN.shape[-2:]
        if bins != self.mel.n_mels or frames % self.downsampling or bins % self.downsampling:
            raise MusiccmError(f"mel of {frames} frames x {bins} bins: the VAE takes {self.mel.n_mels} bins and a "
                               f"number of frames that is a multiple of {self.downsampling}; crop or pad the clip")
        posterior = vae.encode(F.pixel_unshuffle(mel_BMN.unsqueeze(1), self.patch)).latent_dist
        return posterior.mean, posterior.std

    def _require_vae(self) -> Any:
        if self.vae is None:
            raise MusiccmError("this codec has no VAE: build it with one to encode, or to decode mels")
        return self.vae

    def standardise(self, raw_BCTF: Tensor) -> Tensor:
        """Raw latents scaled channel by channel, but not folded: what a fast decoder takes."""
        return (raw_BCTF - self.latents_mean) / self.latents_std

    def normalise(self, raw_BCTF: Tensor) -> Tensor:
        """Raw latents to the U-Net's z."""
        return F.pixel_unshuffle(self.standardise(raw_BCTF), self.latent_patch)

    def denormalise(self, z_BCTF: Tensor) -> Tensor:
        """The U-Net's z to raw latents."""
        return F.pixel_shuffle(z_BCTF, self.latent_patch) * self.latents_std + self.latents_mean

    def decode_mel(self, z_BCTF: Tensor, time: slice | None = None, context: int = 0) -> Tensor:
        """Decode normalised latents; gradients flow to z.

        Args:
            z_BCTF: Normalised latents.
            time: Latent frames to decode, where a crop is enough (the discriminator's case: the decoder is the
                dearest part of a step).
            context: Frames of the clip on either side of the crop that are decoded too, and cut off the mel: the first
                and last frames of what is decoded lack their neighbours.

        Returns:
            mel_BMN, with M = T * downsampling.

        Raises:
            MusiccmError: If this codec was built without a VAE.
        """
        vae = self._require_vae()
        lead = 0
        if time is not None:
            frames = z_BCTF.shape[2]
            start, stop, _ = time.indices(frames)
            first, lead = max(0, start - context), min(start, context)
            z_BCTF = z_BCTF[:, :, first : min(frames, stop + context)]
        image = vae.decode(self.denormalise(z_BCTF)).sample
        mel_BMN = F.pixel_shuffle(image, self.patch).squeeze(1)
        if time is None or not context:
            return mel_BMN
        return mel_BMN[:, lead * self.downsampling : (lead + stop - start) * self.downsampling]

    def reconstruct(self, mel_BMN: Tensor) -> Tensor:
        """A mel through the VAE, by the mean of its posterior."""
        mean_BCTF, _ = self.encode(mel_BMN)
        return self.decode_mel(self.normalise(mean_BCTF))

    def vocode(self, mel_BMN: Tensor) -> Tensor:
        """Turn a mel into sound.

        HiFi-GAN's odd upsampling rates leave a few samples more than frames times hop (32 in MusicLDM's); the surplus
        is cut from the end.

        Args:
            mel_BMN: Natural-log mel. The vocoder's own `normalize_before`, if set, is applied inside it.

        Returns:
            Waveforms of shape [B, M * hop_length].

        Raises:
            MusiccmError: If this codec was built without a vocoder.
        """
        if self.vocoder is None:
            raise MusiccmError("this codec has no vocoder: build it with one to make waveforms")
        # a CPU takes clips one by one: the activations of a batch leave its caches, and each clip takes twice as long
        parts = mel_BMN.split(1) if mel_BMN.device.type == "cpu" else [mel_BMN]
        waveform_BS = torch.cat([self.vocoder(part) for part in parts])
        return waveform_BS[:, : mel_BMN.shape[1] * self.mel.hop_length]

    def decode(self, z_BCTF: Tensor) -> Tensor:
        """Normalised latents to waveforms of shape [B, S], by the fast decoder where there is one."""
        if self.decoder is not None:
            return self.decoder(F.pixel_shuffle(z_BCTF, self.latent_patch))
        return self.vocode(self.decode_mel(z_BCTF))

    @property
    def vocoder_context(self) -> int:
        """Mel frames on either side that the vocoder's sound of a frame can depend on (one-sided receptive field).

        A chunk that is vocoded with this much context, which is then cut off, sounds as it does in the whole.

        Raises:
            MusiccmError: If this codec was built without a vocoder.
        """
        if self.vocoder is None:
            raise MusiccmError("this codec has no vocoder: build it with one to make waveforms")
        c = self.vocoder.config
        receptive, rate = 3.0, 1  # conv_pre has 7 taps; rate is in samples a mel frame
        for upsample, taps in zip(c.upsample_rates, c.upsample_kernel_sizes, strict=True):
            receptive += -(-taps // upsample) / rate
            rate *= upsample
            blocks = zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
            receptive += max(sum((d + 1) * (k - 1) // 2 for d in dilations) for k, dilations in blocks) / rate
        return math.ceil(receptive + 3.0 / rate)

    @property
    def decoder_context(self) -> int:
        """Frames of z on either side that the fast decoder's sound of a frame can depend on.

        Raises:
            MusiccmError: If this codec has no fast decoder.
        """
        if self.decoder is None:
            raise MusiccmError("this codec has no fast decoder: build it with one")
        return -(-self.decoder.receptive_field // self.latent_patch)

    def latent_shape(self, duration_s: float) -> tuple[int, int, int]:
        """The [C, T, F] of the z that holds at least `duration_s` seconds."""
        frames = math.ceil(duration_s * self.mel.sample_rate_hz / self.mel.hop_length - 1e-6)
        return self.latent_channels, math.ceil(frames / self.downsampling), self.mel.n_mels // self.downsampling


class SoundEncoder(nn.Module):
    """Sound to the posterior of the raw latents, by way of a mel where the codec's encoder takes one.

    Args:
        codec: A `LatentCodec`, or an audio VAE.
    """

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec, self.mel = codec, LogMel(codec.mel) if codec.reads_mel else None

    def front(self, waveform_BS: Tensor) -> Tensor:
        """What the encoder takes: a mel, or the sound itself."""
        return waveform_BS if self.mel is None else self.mel(waveform_BS)

    def moments(self, front: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the raw latents, of what `front` gives."""
        if self.mel is not None:
            return self.codec.encode(front)
        return self.codec.encode(front, self.codec.config.sample_rate_hz)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """The posterior's mean, normalised."""
        return self.codec.normalise(self.moments(self.front(waveform_BS))[0])
