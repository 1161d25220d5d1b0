"""An audio VAE whose sound is made by a fast decoder."""

from __future__ import annotations

from torch import Tensor

from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.melody.audio_vae import AudioVae


class FastAudioVae(AudioVae):
    """The encoder of an audio VAE, and a fast decoder in place of its own; latents are the same.

    Args:
        vae: Its encoder and conventions.
        decoder: Takes its normalised latents.

    Raises:
        MusiccmError: The decoder takes other latents.
    """

    decoded_by = "fast"

    def __init__(self, vae: AudioVae, decoder: FastDecoder) -> None:
        decoder.check_latents(vae.raw_latents(), "decoder/config.json: ")
        super().__init__(vae.config)
        self.encoder, self.decoder = vae.encoder, decoder  # type: ignore[assignment]
        self.train(vae.training)

    @property
    def receptive_field(self) -> int:
        """Latent frames on either side that a latent frame's sound depends on."""
        return self.decoder.receptive_field  # type: ignore[return-value]

    def sound(self, bounded_BCTF: Tensor) -> Tensor:
        """Waveforms of latents as `bounded` gives them, within [-1, 1]."""
        return self.decoder((bounded_BCTF - self.latents_mean) / self.latents_std).clamp(-1.0, 1.0)
