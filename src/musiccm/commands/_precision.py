"""Which weights of a bundle may be stored in half precision: each part's output is compared in both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio import LogMel
from musiccm.data.batch import WaveformBatch
from musiccm.diffusion import Condition, expand_condition, noise_process
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SECOND_CLAP, load_readers
from musiccm.models.codec import LatentCodec, SoundEncoder
from musiccm.models.conditioners.clap import ClapConditioner
from musiccm.models.conditioners.text_encoder import TextEncoderConditioner
from musiccm.models.sections import PLACES, section_window
from musiccm.samplers import INITIAL, sample_noise, teacher_stepper

Probe = Callable[[Any], list[Tensor]]
"""A part in, what it makes of the held-out clips out."""

U_NET_STEPS, U_NET_GUIDANCE = 8, 3.0


def half_rounded(part: nn.Module) -> nn.Module:
    """A copy whose floating-point weights went through float16 and back, as those that are read from such a file."""
    return copy.deepcopy(part).half().float()


def relative_change(reference: Tensor, changed: Tensor) -> float:
    """RMS difference over the reference's own standard deviation; infinite where the change is not finite."""
    reference, changed = reference.double(), changed.double()
    if not torch.isfinite(changed).all():
        return float("inf")
    spread = (reference - reference.mean()).square().mean().sqrt()
    return float((changed - reference).square().mean().sqrt() / spread.clamp_min(1e-12))


def probes(bundle: Bundle, batch: WaveformBatch, present: set[str]) -> dict[str, Probe]:
    """What is compared, for each part with weights.

    The U-Net is measured on latents that guided DDIM makes from it, since an epsilon network's own error is divided by
    alpha, 0.0119 at the noisiest step: a small change of its output may be a large one of the music.

    Args:
        bundle: The bundle.
        batch: Held-out clips.
        present: Its parts.

    Returns:
        A probe for each part in `present` that has weights; for the U-Net only where the scheduler is there too.
    """
    log_mel = LogMel(bundle.mel)
    mel_BMN = log_mel(batch.waveform_BS)
    found: dict[str, Probe] = {
        "evaluators/tagger": lambda tagger: list(tagger(mel_BMN)),
        "evaluators/sections": lambda tagger: [
            output for place in PLACES for output in tagger(section_window(mel_BMN, *place))],
        "evaluators/audiomae": lambda network: [*network(mel_BMN), network.embed(mel_BMN)],
        "vocoder": lambda vocoder: [vocoder(mel_BMN)],
    }

    def vae_probe(vae: nn.Module) -> list[Tensor]:
        codec = LatentCodec(vae, None, bundle.mel, bundle.latent_patch)
        mean_BCTF, std_BCTF = codec.encode(mel_BMN)
        return [mean_BCTF, std_BCTF, codec.decode_mel(codec.normalise(mean_BCTF))]

    def audio_vae_probe(vae: nn.Module) -> list[Tensor]:
        mean_BCTF, std_BCTF = SoundEncoder(vae).moments(batch.waveform_BS)
        noise_BCTF = torch.randn(mean_BCTF.shape, generator=torch.Generator().manual_seed(0))
        return [mean_BCTF + std_BCTF * noise_BCTF, log_mel(vae.decode(vae.normalise(mean_BCTF)))]

    found |= {"vae": vae_probe, "audio_vae": audio_vae_probe}
    if "decoder" in present and present & {"vae", "audio_vae"}:
        codec = bundle.codec("none")
        encoder = SoundEncoder(codec)
        with torch.no_grad():
            latents_BCTF = codec.standardise(encoder.moments(encoder.front(batch.waveform_BS))[0])
        found["decoder"] = lambda decoder: [log_mel(decoder(latents_BCTF))]
    if bundle.gives_tokens and "tokenizer" in present:

        def encoder_probe(encoder: nn.Module) -> list[Tensor]:
            return [TextEncoderConditioner(encoder, bundle.tokenizer).text(batch.captions).unpadded]

        found["text_encoder"] = encoder_probe
    elif {"tokenizer", "feature_extractor"} <= present:
        found["text_encoder"] = _clap_probe(bundle, batch, bundle.tokenizer, bundle.feature_extractor)
    if SECOND_CLAP in present:
        found[SECOND_CLAP] = _clap_probe(bundle, batch, *load_readers(bundle.root_of(SECOND_CLAP) / SECOND_CLAP))
    if "scheduler" in present and all(bundle.has(part) for part in bundle.kind.needed if part != "vocoder"):
        found[bundle.kind.network] = lambda network: [_sampled(bundle, network, batch)]
    return {name: probe for name, probe in found.items() if name in present}


def _clap_probe(bundle: Bundle, batch: WaveformBatch, tokenizer: Any, feature_extractor: Any) -> Probe:
    def probe(clap: nn.Module) -> list[Tensor]:
        conditioner = ClapConditioner(clap, tokenizer, feature_extractor)
        return [conditioner.text(batch.captions), conditioner.audio(batch.waveform_BS, bundle.mel.sample_rate_hz)]

    return probe


def _sampled(bundle: Bundle, unet: nn.Module, batch: WaveformBatch) -> Tensor:
    schedule = noise_process(bundle.scheduler_config)
    denoise = bundle.kind.denoiser(unet, schedule, bundle.prediction_type)
    told_by = ["text_encoder", "tokenizer", *(() if bundle.gives_tokens else ("feature_extractor",))]
    if all(bundle.has(part) for part in told_by):
        conditioner = bundle.network_conditioner()
        cond_BD, null_BD = conditioner.text(batch.captions), conditioner.null(len(batch))
    else:  # any unit vectors serve to compare two networks, where it attends to tokens as one token each
        config = bundle.config("unet")
        width = config.get("projection_class_embeddings_input_dim")
        drawn = torch.randn(len(batch) + 1, width or config["cross_attention_dim"],
                            generator=torch.Generator().manual_seed(0))
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        given = drawn if width else Condition(drawn[:, None], torch.ones(len(drawn), 1, dtype=torch.bool))
        cond_BD, null_BD = given[1:], expand_condition(given[:1], len(batch))
    noise = sample_noise(list(range(len(batch))), bundle.latent_shape(), INITIAL)
    stepper = teacher_stepper(denoise, schedule, lambda count: null_BD, U_NET_STEPS, U_NET_GUIDANCE)
    return stepper.sample(cond_BD, noise)


@torch.no_grad()
def choose(part: nn.Module, probe: Probe | None, tolerance: float) -> dict[str, Any]:
    """Decide on one part.

    Args:
        part: The part, in float32.
        probe: What is compared; None keeps float32, for nothing could be measured.
        tolerance: Largest relative change of any output that counts as none.

    Returns:
        `dtype` (`float16` or `float32`) and `relative_change`, the largest over the outputs (None without a probe).
    """
    if probe is None:
        return {"dtype": "float32", "relative_change": None}
    pairs = zip(probe(part), probe(half_rounded(part)), strict=True)
    change = max(relative_change(reference, changed) for reference, changed in pairs)
    return {"dtype": "float16" if change <= tolerance else "float32", "relative_change": change}
