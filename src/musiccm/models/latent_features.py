"""Frozen features of latents: what a network of the bundle sees in their decoded mel."""

from __future__ import annotations

from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.features import ClapFeatures

NETWORKS = ("audiomae", "clap")


class DecodedFeatures(nn.Module):
    """A bundle's VAE decoder and a feature network over it; gradients flow to the latents.

    The parts are read for this object alone: a system that has them too holds them twice.

    Args:
        bundle: directory, packaged name or hub id.
        network: `audiomae` or `clap`.

    Raises:
        MusiccmError: an unknown network.
    """

    def __init__(self, bundle: str, network: str = "audiomae") -> None:
        super().__init__()
        if network not in NETWORKS:
            raise MusiccmError(f"network: expected one of {', '.join(NETWORKS)}, found {network!r}.")
        self.bundle, self.kind = bundle, network
        parts = Bundle.from_pretrained(bundle)
        self.codec = parts.codec("original")
        self.features = (parts.evaluators["audiomae"] if network == "audiomae"
                         else ClapFeatures(parts.clap, parts.feature_extractor, parts.mel))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> DecodedFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, z_BCTF: Tensor) -> list[Tensor]:
        """Features of whole clips: K tensors [B, tokens, width]."""
        return self.features(self.codec.decode_mel(z_BCTF, None, 0))
