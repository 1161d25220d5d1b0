"""What kind of model a bundle holds: which parts denoise, encode and condition, behind contracts that all share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from musiccm.diffusion import NoiseProcess
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import PARTS, need, token_width
from musiccm.models.denoiser import Denoiser

if TYPE_CHECKING:
    from musiccm.models.bundle.bundle import Bundle

#: What can make sound of latents.
DECODERS = ("fast", "original")


class BundleKind(Protocol):
    """What the package asks of a bundle beyond its files."""

    #: The folders of the network that denoises and of the autoencoder.
    network: str
    autoencoder: str
    #: Parts that such a bundle cannot do without, beside text encoder, tokenizer, scheduler and evaluators.
    needed: tuple[str, ...]
    #: Parts whose hash says what makes latents of captions.
    teaching: tuple[str, ...]
    #: How a teacher is sampled where nothing else is asked for: steps, and the usual guidance scale.
    steps: int
    guidance_scale: float
    #: Keys of `musiccm.json` that a student takes over of its teacher.
    settings: tuple[str, ...]
    #: Parts whose hash says what makes sound of latents, by the decoder's name.
    decoding: Mapping[str, tuple[str, ...]]

    def sample_rate_hz(self, bundle: Bundle) -> int:
        """Rate of its sound."""

    def check(self, bundle: Bundle) -> None:
        """Refuse parts that are from different models, before any weights are read."""

    def check_condition(self, bundle: Bundle, network: Mapping[str, Any] | None) -> None:
        """Refuse a network, the bundle's own for None, that does not take what it is conditioned by."""

    def latent_shape(self, bundle: Bundle) -> tuple[int, int, int]:
        """The [C, T, F] of a clip of the trained length."""

    def unlisted(self, bundle: Bundle) -> list[str]:
        """Parts that a student needs of its teacher and that `model_index.json`, for diffusers' eyes, does not list."""

    def codec(self, bundle: Bundle, decoder: str | None) -> Any:
        """See `Bundle.codec`."""

    def denoiser(self, network: nn.Module, process: NoiseProcess, prediction_type: str) -> Denoiser:
        """A network of this kind behind the denoiser contract."""

    def conditioner(self, bundle: Bundle) -> nn.Module:
        """What the network is told of texts: see `Bundle.network_conditioner`."""


class MelKind:
    """A U-Net on the latents of a mel's VAE, told what the text encoder gives: MusicLDM's kind, and TANGO's."""

    network, autoencoder = "unet", "vae"
    needed: tuple[str, ...] = ("unet", "vae", "vocoder")
    teaching: tuple[str, ...] = ("unet", "scheduler", "text_encoder", "tokenizer")
    steps, guidance_scale = 50, 3.0  # MusicCM's w = 2
    settings: tuple[str, ...] = ()
    decoding: Mapping[str, tuple[str, ...]] = {"fast": ("vae", "decoder"), "original": ("vae", "vocoder")}

    def sample_rate_hz(self, bundle: Bundle) -> int:
        """That of the mel front end."""
        return bundle.mel.sample_rate_hz

    def check(self, bundle: Bundle) -> None:
        """The U-Net's channels against the VAE's, and what it takes against what the text encoder gives."""
        (taken,), (raw,) = bundle.stated("unet", "in_channels"), bundle.stated("vae", "latent_channels")
        given = raw * bundle.latent_patch**2
        if taken != given:
            raise MusiccmError(f"{bundle.path}: unet takes {taken} channels, vae gives {given} (latent_patch "
                               f"{bundle.latent_patch}); the two are from different models")
        self.check_condition(bundle, None)

    def check_condition(self, bundle: Bundle, network: Mapping[str, Any] | None) -> None:
        """Refuse a U-Net that does not take what the text encoder gives, naming both widths."""
        unet = bundle.config("unet") if network is None else network
        if bundle.gives_tokens:
            from musiccm.models.conditioners.text_encoder import check_attends

            check_attends(unet, token_width(bundle.root_of("text_encoder")), str(bundle.path))
            return
        where = bundle.root_of("unet") / "unet" / PARTS["unet"].config_file
        width = need(unet, "projection_class_embeddings_input_dim", where)
        (embedded,) = bundle.stated("text_encoder", "projection_dim")
        if width is None and unet.get("class_embed_type") is None:
            raise MusiccmError(f"{bundle.path}: unet attends to tokens (it has no class_embed_type), and text_encoder "
                               "is a CLAP, which gives one vector a text; the two are from different models. Put the "
                               "text encoder back that the U-Net was trained with, such as a T5")
        if width != embedded:
            raise MusiccmError(f"{bundle.path}: unet takes a condition of width {width}, text_encoder gives "
                               f"{embedded}; the two are from different models")

    def latent_shape(self, bundle: Bundle) -> tuple[int, int, int]:
        """What the U-Net was trained on, from its configuration."""
        channels, size = bundle.stated("unet", "in_channels", "sample_size")
        if isinstance(size, int):
            # An int is the height, here time; the width follows from the mel bins and the VAE's factor.
            blocks, images = bundle.stated("vae", "block_out_channels", "in_channels")
            factor = 2 ** (len(blocks) - 1) * math.isqrt(images) * bundle.latent_patch
            return channels, size, bundle.mel.n_mels // factor
        return channels, size[0], size[1]

    def unlisted(self, bundle: Bundle) -> list[str]:
        """The fast decoder, where there is one."""
        return ["decoder"] if bundle.has_fast_decoder else []

    def codec(self, bundle: Bundle, decoder: str | None) -> nn.Module:
        """The `LatentCodec`."""
        from musiccm.models.codec import LatentCodec

        if decoder == "fast" and not bundle.has_fast_decoder:
            raise MusiccmError(f"{bundle.path}: has no fast decoder (no decoder/ folder); use decoder 'original', or "
                               "train one by experiments/stages/decoder.yaml")
        if decoder is None:
            decoder = "fast" if bundle.has_fast_decoder else "original"
        config = _latent_numbers(bundle) if bundle.plain and decoder == "fast" else None
        return LatentCodec(
            bundle.part("vae") if config is None else None, bundle.vocoder if decoder == "original" else None,
            bundle.mel, bundle.latent_patch,
            bundle.part("decoder") if decoder == "fast" else None, config,
        )

    def denoiser(self, network: nn.Module, process: NoiseProcess, prediction_type: str) -> Denoiser:
        """The U-Net behind the contract."""
        return Denoiser(network, process, prediction_type)

    def conditioner(self, bundle: Bundle) -> nn.Module:
        """The text encoder's."""
        return bundle.conditioner()


def _latent_numbers(bundle: Bundle) -> SimpleNamespace | None:
    """What a codec that only decodes must know of the VAE; None where its configuration leaves any to diffusers."""
    config = bundle.config("vae")
    keys = ("in_channels", "block_out_channels", "latent_channels", "scaling_factor", "latents_mean", "latents_std")
    return SimpleNamespace(**{key: config[key] for key in keys}) if all(key in config for key in keys) else None


def kinds() -> tuple[BundleKind, ...]:
    """All of them; the first is that of a bundle with no part of another's."""
    from musiccm.models.melody.kind import MelodyKind

    return MelKind(), MelodyKind()


def kind_of(bundle: Bundle) -> BundleKind:
    """The kind of a bundle, also of one that stages have not filled yet: by the parts that only one kind has.

    A bundle's own parts decide before those that its base has, whether they are borrowed or not.
    """
    first, *others = every = kinds()
    for kind in every:
        if any((bundle.path / part).is_dir() for part in (kind.network, kind.autoencoder)):
            return kind
    return next((kind for kind in others if bundle.has(kind.network) or bundle.has(kind.autoencoder)), first)
