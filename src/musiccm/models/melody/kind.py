"""A bundle of MeLoDy's kind: a dual-path network on latents of an audio VAE, told what a language model plans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from musiccm.diffusion import NoiseProcess
from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Denoiser
from musiccm.models.melody.token_rate import TOKEN_RATE_HZ

if TYPE_CHECKING:
    from musiccm.models.bundle.bundle import Bundle

#: The key of `musiccm.json` that says how tokens are drawn: `temperature` and `top_k`.
SETTING = "semantic_tokens"


class MelodyKind:
    """`audio_vae/`, `semantic_tokenizer/`, `semantic_lm/` and `dual_path/`; see `BundleKind`."""

    network, autoencoder = "dual_path", "audio_vae"
    needed: tuple[str, ...] = ("audio_vae", "semantic_tokenizer", "semantic_lm", "dual_path")
    teaching: tuple[str, ...] = ("dual_path", "scheduler", "text_encoder", "tokenizer", "semantic_tokenizer",
                                 "semantic_lm")
    steps, guidance_scale = 20, 2.5  # the most of the paper's, and its guidance
    settings: tuple[str, ...] = (SETTING,)
    decoding: Mapping[str, tuple[str, ...]] = {"fast": ("audio_vae", "decoder"), "original": ("audio_vae",)}

    def sample_rate_hz(self, bundle: Bundle) -> int:
        """That of the audio VAE; before there is one, that of the borrowed parts."""
        return bundle.stated("audio_vae", "sample_rate_hz")[0] if bundle.has("audio_vae") else bundle.mel.sample_rate_hz

    def check(self, bundle: Bundle) -> None:
        """The network's latents against the audio VAE's, its tokens against the tokenizer's, and these in time."""
        (taken, per), (given,) = (bundle.stated("dual_path", "channels", "frames_per_token"),
                                  bundle.stated("audio_vae", "latent_channels"))
        if taken != given:
            raise MusiccmError(f"{bundle.path}: dual_path takes {taken} channels, audio_vae gives {given}; the two are "
                               "from different models")
        (strides,), rate_hz = bundle.stated("audio_vae", "strides"), self.sample_rate_hz(bundle)
        covered = per * TOKEN_RATE_HZ * math.prod(strides)
        if covered != rate_hz:
            raise MusiccmError(f"{bundle.path}: dual_path has {per} latent frames a token; {rate_hz} Hz and "
                               f"{TOKEN_RATE_HZ} tokens a second with audio_vae's strides {strides} make "
                               f"{per * rate_hz / covered:g}; the two are from different models")
        self.check_condition(bundle, None)

    def check_condition(self, bundle: Bundle, network: Mapping[str, Any] | None) -> None:
        """The width of a token, and the language model's codebook."""
        config = bundle.config("dual_path") if network is None else network
        (width, codebook), taken = bundle.stated("semantic_tokenizer", "width", "codebook"), config["token_width"]
        if taken != width:
            raise MusiccmError(f"{bundle.path}: dual_path takes token vectors of width {taken}, semantic_tokenizer "
                               f"gives {width}; the two are from different models")
        if bundle.has("semantic_lm") and (written := bundle.stated("semantic_lm", "codebook")[0]) != codebook:
            raise MusiccmError(f"{bundle.path}: semantic_lm writes tokens of a codebook of {written}, "
                               f"semantic_tokenizer has {codebook}; the two are from different models")

    def latent_shape(self, bundle: Bundle) -> tuple[int, int, int]:
        """Channels and frames of the network's clips, and one bin."""
        channels, frames = bundle.stated("dual_path", "channels", "frames")
        return channels, frames, 1

    def unlisted(self, bundle: Bundle) -> list[str]:
        """Audio VAE, tokenizer, language model and fast decoder; the tagger that reads clips that go on."""
        parts = ["audio_vae", "semantic_tokenizer", "semantic_lm", *(["decoder"] if bundle.has_fast_decoder else [])]
        source = bundle.stated("semantic_tokenizer", "source")[0]
        return [part for part in [*parts, *(["evaluators/tagger"] if source == "tagger" else [])] if bundle.has(part)]

    def codec(self, bundle: Bundle, decoder: str | None) -> nn.Module:
        """The audio VAE, which needs no vocoder; with the fast decoder in place of its own where that is asked for."""
        there = bundle.has_fast_decoder
        if decoder == "fast" and not there:
            raise MusiccmError(f"{bundle.path}: has no fast decoder (no decoder/ folder): its audio VAE makes sound "
                               "itself; use decoder 'original', or train one by "
                               "experiments/melody/stages/decoder.yaml")
        if decoder in ("original", "none") or not there:
            return bundle.part("audio_vae")
        from musiccm.models.melody.fast_audio_vae import FastAudioVae

        return FastAudioVae(bundle.part("audio_vae"), bundle.part("decoder"))

    def denoiser(self, network: nn.Module, process: NoiseProcess, prediction_type: str) -> Denoiser:
        """The network, which takes frames that are clean already."""
        from musiccm.models.melody.frame_denoiser import FrameDenoiser

        return FrameDenoiser(network, process, prediction_type)

    def conditioner(self, bundle: Bundle) -> nn.Module:
        """Prompt to tokens, by CLAP and the language model; without a language model, tokens to vectors alone."""
        from musiccm.models.melody.conditioner import SemanticConditioner
        from musiccm.models.melody.features import FeatureSource, load_source

        self.check_condition(bundle, None)
        tokenizer, lm = bundle.part("semantic_tokenizer"), None
        if bundle.has("semantic_lm"):
            lm = bundle.part("semantic_lm")
            lm.check_tokenizer(tokenizer)
        frames, per = bundle.stated("dual_path", "frames", "frames_per_token")
        how = bundle.settings.get(SETTING, {})
        if not isinstance(how, dict) or (unknown := sorted(set(how) - {"temperature", "top_k"})):
            raise MusiccmError(f"{bundle.path}/musiccm.json: {SETTING}: expected temperature and top_k, found "
                               f"{unknown if isinstance(how, dict) else how!r}")

        def features() -> FeatureSource:
            source, layer = tokenizer.config.source, tokenizer.config.layer
            if source not in ("tagger", "clap"):
                raise MusiccmError(f"{bundle.path}: tokens of a clip that is there are made by {source}, which no "
                                   "bundle holds; give it by `pipeline.conditioner.tokenizer.use(load_source(...))` "
                                   "(musiccm.models.melody.features)")
            return load_source(source, bundle.path, layer)

        return SemanticConditioner(bundle.conditioner(), tokenizer, lm, frames // per, f"{bundle.path}/", **how,
                                   features=features)
