"""TANGO and ConsistencyTTA to a bundle: their published weights in five layouts, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.diffusion import StudentGuidance
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import SETTINGS_FILE, check_part, load_part
from musiccm.models.bundle.student_record import LINSPACE_SCHEDULER, guidance_record, sampler_record
from musiccm.models.convert.assemble import Assembled, choose
from musiccm.models.convert.clap import read_tokenizer
from musiccm.models.convert.converted import check_scale_factor
from musiccm.models.convert.cross_unet import cross_unet_from_original, make_cross_unet
from musiccm.models.convert.reading import read_original, tensors_of, under
from musiccm.models.convert.t5 import make_t5, read_t5, t5_from_original
from musiccm.models.convert.tta_layouts import (
    RELEASED_SCALE,
    SCHEDULER,
    TtaWeights,
    check_autoencoder,
    is_diffusers,
    read_layout,
)
from musiccm.models.convert.vae import vae_from_original
from musiccm.models.convert.vocoder import read_vocoder_config, vocoder_from_original
from musiccm.models.denoiser import takes_scale
from musiccm.texts import read_json

LICENCE = ("these weights are non-commercial (TANGO's: CC BY-NC-SA 4.0, ConsistencyTTA's: CC BY-NC-ND 4.0); the "
           "converted ones are for your own use: nothing of them may be shipped or published")
#: Stable Diffusion 2.1's noise schedule, which TANGO took.
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
#: Schedulers of diffusers that a teacher of betas is published with; all read the same table of noise.
TEACHER_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler",
                      "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
                      "PNDMScheduler", "UniPCMultistepScheduler")
#: Keys of a scheduler's file which, where set, make other noise of the same betas.
_OTHER_BETAS = ("trained_betas", "rescale_betas_zero_snr")
#: Guidance scales that ConsistencyTTA's students are trained on, and the one that its example samples by.
SCALES, DEFAULT_SCALE = (0.0, 6.0), 4.0
#: Timesteps that ConsistencyTTA's students are trained at, clean not counted: `linspace(0, 999, 18)`.
GRID_POINTS = 17
#: Of an autoencoder that was trained on in a run: what belongs to its average.
_AVERAGED = {"ema_decoder.": "decoder.", "ema_post_quant_conv.": "post_quant_conv."}


@dataclass
class TtaSources:
    """A folder of published weights and what it does not say.

    Args:
        folder: The folder.
        weights: Which U-Net of a ConsistencyTTA run: `ema`, `target`, `raw` or `teacher`.
        text_encoder: Folder or hub id of a T5, where the files have none.
        tokenizer: Folder or hub id of FLAN-T5's tokenizer.
        vae: File of an autoencoder with its vocoder, in place of the folder's.
        vocoder_config: HiFi-GAN's JSON.
        unet_config: diffusers' JSON of the U-Net, for widths that were not published.
        scale_factor: Of the latents, for files without it.
        mel_frames: Frames of the clips that the U-Net was trained on.
        prefer: `checkpoint` or `files`, where the main file and the autoencoder's own both hold one and differ.
    """

    folder: str
    weights: str | None = None
    text_encoder: str | None = None
    tokenizer: str = "google/flan-t5-large"
    vae: str | None = None
    vocoder_config: str | None = None
    unet_config: str | None = None
    scale_factor: float | None = None
    mel_frames: int = 1024
    prefer: str | None = None


def assemble_tta(sources: TtaSources) -> Assembled:
    """Convert every part.

    Args:
        sources: The files.

    Returns:
        The parts.

    Raises:
        MusiccmError: A part is in no file, differs between two, or is not of the expected architecture.
    """
    made = Assembled()
    made.record["licence"] = LICENCE
    if is_diffusers(sources.folder):
        _from_diffusers(made, sources)
    else:
        _from_files(made, sources, read_layout(sources.folder, sources.weights))
    _check_widths(made.parts)
    return made


def _from_files(made: Assembled, sources: TtaSources, found: TtaWeights) -> None:
    made.record["layout"] = found.layout
    assumed: list[str] = made.record["assumed"]
    assumed += found.assumed
    _add_autoencoder(made, sources, found)
    made.mel = _mel(made, found, assumed)
    _add_unet(made, sources, found.unet, None, found.path, found.dropped, found.ignored, found.weights)
    _add_text(made, sources, found)
    made.parts["tokenizer"] = read_tokenizer(sources.tokenizer, made.parts["text_encoder"].config.vocab_size,
                                             "google/flan-t5-large")
    assumed.append(f"noise schedule: {SCHEDULER}'s, {SCHEDULE}")
    _set_scheduler(made, "sample" if found.clean else "v_prediction", found.guidance, found.grid_points)


def _add_autoencoder(made: Assembled, sources: TtaSources, found: TtaWeights) -> None:
    """VAE and vocoder, which is a part of it here."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    assumed: list[str] = made.record["assumed"]
    factor = _scale_factor(sources, found, assumed)
    numbers = read_vocoder_config(sources.vocoder_config) if sources.vocoder_config else None

    def make_vae(tensors: Mapping[str, Tensor], what: str) -> tuple[nn.Module, list[str]]:
        check_autoencoder(tensors, what)
        own, left = _averaged({name: value for name, value in tensors.items() if not name.startswith("vocoder.")},
                              found.weights == "ema")
        converted = vae_from_original(own, factor, what)
        return converted.build(lambda config: AutoencoderKL(**config), what), [*left, *converted.dropped]

    def make_vocoder(tensors: Mapping[str, Tensor], what: str) -> tuple[nn.Module, list[str]]:
        converted = vocoder_from_original(under(tensors, "vocoder."), numbers, what)
        assumed.extend(line for line in converted.assumed if line not in assumed)
        return converted.build(lambda config: SpeechT5HifiGan(SpeechT5HifiGanConfig(**config)), what), []

    path = sources.vae or (None if found.vae_file is None else str(found.vae_file))
    for name, make in (("vae", make_vae), ("vocoder", make_vocoder)):
        part, origin, dropped, ignored = choose("vae", path, found, found.vae, make, ("state_dict",), sources.prefer,
                                                weights_only=True)
        made.add(name, part, origin, dropped, ignored, **({"scale_factor": factor} if name == "vae" else {}))


def _averaged(tensors: dict[str, Tensor], take: bool) -> tuple[dict[str, Tensor], list[str]]:
    """An autoencoder's weights, with the average of its decoder where a run has one and it is asked for."""
    averages = [name for name in tensors if name.startswith(tuple(_AVERAGED))]
    if not take or not averages:
        return {name: value for name, value in tensors.items() if name not in averages}, averages
    replaced = {name: next(new + name.removeprefix(old) for old, new in _AVERAGED.items() if name.startswith(old))
                for name in averages}
    kept = {name: value for name, value in tensors.items() if name not in averages}
    return kept | {new: tensors[name] for name, new in replaced.items()}, sorted(set(replaced.values()) & set(kept))


def _scale_factor(sources: TtaSources, found: TtaWeights, assumed: list[str]) -> float:
    stated, own = sources.scale_factor, found.scale_factor
    if stated is not None:
        check_scale_factor(stated, "--scale-factor")
    if own is not None and stated is not None and abs(stated - own) > 1e-4 * abs(own):
        raise MusiccmError(f"{sources.folder}: its scale_factor is {own:.6g}, --scale-factor says {stated:.6g}; leave "
                           "the option out")
    if own is None and stated is None:
        assumed.append(f"scale_factor {RELEASED_SCALE:.6g}, AudioLDM-S-full's, whose autoencoder both systems take")
        return RELEASED_SCALE
    return float(own if own is not None else stated)  # type: ignore[arg-type]


def _mel(made: Assembled, found: TtaWeights, assumed: list[str]) -> MelConfig:
    """The front end, held against the filters that its file has."""
    mel = found.mel
    if mel is None:
        vocoder = made.parts["vocoder"].config
        hop = int(torch.tensor(vocoder.upsample_rates).prod())
        mel = MelConfig(sample_rate_hz=vocoder.sampling_rate, hop_length=hop, n_mels=vocoder.model_in_dim)
        assumed.append(f"mel: n_fft {mel.n_fft}, {mel.fmin_hz:g} to {mel.fmax_hz:g} Hz, as TANGO's")
    if found.stft_file is None:
        assumed.append("mel filters: computed from these numbers, and compared with none, for the files hold none")
    else:
        tensors, ignored = tensors_of(read_original(found.stft_file, weights_only=True), found.stft_file)
        filters, ours = tensors.get("mel_basis"), LogMel(mel).filters.T
        if filters is None:
            raise MusiccmError(f"{found.stft_file}: expected mel_basis, found {', '.join(list(tensors)[:3])}; not the "
                               "file of the mel front end")
        if filters.shape != ours.shape or not torch.allclose(filters.float(), ours, atol=1e-5):
            raise MusiccmError(f"{found.stft_file}: its mel filters are not those of {mel}; the files are not of one "
                               "model")
        # what the class computes itself; listed all the same
        made.record["files"][found.stft_file.name] = {"ignored": sorted([*tensors, *ignored])}
    return mel


def _add_unet(
    made: Assembled, sources: TtaSources, tensors: dict[str, Tensor], config: Mapping[str, Any] | None, path: Path,
    dropped: list[str], ignored: list[str], weights: str | None,
) -> None:
    stated = read_json(Path(sources.unet_config), "the U-Net's configuration") if sources.unet_config else config
    vae = made.parts["vae"].config
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if sources.mel_frames < factor or sources.mel_frames % factor or made.mel.n_mels % factor:
        raise MusiccmError(f"--mel-frames {sources.mel_frames}: expected a positive multiple of {factor}, by which "
                           f"this VAE shrinks, as the {made.mel.n_mels} bins are")
    size = [sources.mel_frames // factor, made.mel.n_mels // factor]
    converted = cross_unet_from_original(tensors, stated, size, str(path))
    made.record["assumed"] += [*converted.assumed, f"clips of {sources.mel_frames} mel frames"]
    notes = {} if weights is None else {"weights": weights}
    made.add("unet", converted.build(make_cross_unet, str(path)), path, dropped, ignored, **notes,
             attention_heads=converted.config.get("attention_head_dim"))


def _add_text(made: Assembled, sources: TtaSources, found: TtaWeights) -> None:
    if found.text and sources.text_encoder:
        raise MusiccmError(f"--text-encoder {sources.text_encoder}: {found.path} has its own T5; leave the option out")
    if found.text:
        converted = t5_from_original(found.text, str(found.path))
        made.record["assumed"] += converted.assumed
        part = converted.build(make_t5, str(found.path))
        part.tie_weights()  # type: ignore[operator]
        made.add("text_encoder", part, found.path, [], found.ignored)
    elif sources.text_encoder is None:
        raise MusiccmError(f"{found.path}: holds no T5 (text_encoder...), which the U-Net reads captions by; give it "
                           "by --text-encoder google/flan-t5-large, or a folder with it")
    else:
        made.add("text_encoder", read_t5(sources.text_encoder), sources.text_encoder, [])


def _set_scheduler(made: Assembled, predicts: str, told: float | str | None, points: int | None = None) -> None:
    """The noise schedule; of a consistency student also how it may be sampled, and guided.

    Args:
        made: The parts, the U-Net among them.
        predicts: What it gives: `sample`, as a consistency student does, or a teacher's `v_prediction` or `epsilon`.
        told: Its run's guidance scale: a number, `variable`, or None where that is not known.
        points: Of a student's grid; None where that is not known.

    Raises:
        MusiccmError: The run says that its student is told a scale, and the U-Net has no branch for it, or the reverse.
    """
    variable = takes_scale(made.parts["unet"].config)
    if told is not None and (told == "variable") != variable:
        raise MusiccmError(f"summary.jsonl: teacher_guidance_scale is {-1 if told == 'variable' else told:g}, by which "
                           f"the student is {'told its' if told == 'variable' else 'of one'} scale, but the weights "
                           f"have {'a' if variable else 'no'} guidance branch; the two are from different runs")
    if predicts != "sample":
        made.parts["scheduler"] = {"_class_name": "DDIMScheduler", **SCHEDULE, "prediction_type": predicts,
                                   "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        return
    # They have no boundary; ours alters less than a millionth of an answer at the lowest point of their grid.
    scheduler = {"_class_name": LINSPACE_SCHEDULER, **SCHEDULE, "prediction_type": "sample", "grid": "linspace",
                 "original_inference_steps": points or GRID_POINTS, "timestep_scaling": 10.0, "clip_sample": False}
    made.parts["scheduler"] = scheduler
    if points is None:
        made.record["assumed"].append(f"trained at linspace(0, 999, {GRID_POINTS + 1}), as ConsistencyTTA's are")
    made.record["assumed"].append("one call by default; further ones are at points of this grid, where its own "
                                  "sampler's are at others, which it was not trained at")
    guidance: dict[str, Any] = {"guidance": "fixed"}  # by a scale that is not known
    if variable:
        guidance = guidance_record(StudentGuidance("variable", DEFAULT_SCALE, SCALES))
        made.record["assumed"].append(f"guidance scales {SCALES[0]:g} to {SCALES[1]:g}, as its code trains on; "
                                      f"{DEFAULT_SCALE:g} by default, as its example")
    elif isinstance(told, int | float):
        guidance = guidance_record(StudentGuidance("fixed", float(told)))
    made.settings["distillation"] = {
        **guidance, "sampler": {"name": "lcm"}, **sampler_record(scheduler), "default_steps": 1,
        "recipe": {"objective": "ConsistencyTTA"},
    }


def _from_diffusers(made: Assembled, sources: TtaSources) -> None:
    """The fifth layout: all parts are diffusers' and transformers' own, but for the U-Net's branch.

    Raises:
        MusiccmError: It is a bundle already, is no model of the two systems, or an option has no meaning for it.
    """
    folder = Path(sources.folder)
    if (folder / SETTINGS_FILE).is_file():
        raise MusiccmError(f"--tango {folder}: is a bundle already ({SETTINGS_FILE}); use it as it is")
    predicts = _diffusers_prediction(folder)
    made.record["layout"] = "diffusers" + (", with ConsistencyTTA's own pipeline" if predicts == "sample" else "")
    for option in ("weights", "text_encoder", "vae", "vocoder_config", "scale_factor", "prefer"):
        if getattr(sources, option) is not None:
            raise MusiccmError(f"--{option.replace('_', '-')}: {folder} is in diffusers' layout, which says it itself; "
                               "leave the option out")
    for name in ("vae", "vocoder", "text_encoder", "tokenizer"):
        check_part(folder, name)
        part = load_part(folder, name)
        if isinstance(part, nn.Module):
            made.add(name, part, folder, [])
        else:
            made.parts[name] = part
    vocoder = made.parts["vocoder"].config
    hop = int(torch.tensor(vocoder.upsample_rates).prod())
    made.mel = MelConfig(sample_rate_hz=vocoder.sampling_rate, hop_length=hop, n_mels=vocoder.model_in_dim)
    made.record["assumed"].append(f"mel: n_fft {made.mel.n_fft}, {made.mel.fmin_hz:g} to {made.mel.fmax_hz:g} Hz, as "
                                  "TANGO's")
    check_part(folder, "unet")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, ignored = tensors_of(read_original(path), path)
    _add_unet(made, sources, tensors, read_json(folder / "unet" / "config.json", "the U-Net's configuration"), path, [],
              ignored, None)
    _set_scheduler(made, predicts, None)


def _diffusers_prediction(folder: Path) -> str:
    """What the U-Net of a folder in diffusers' layout gives: `sample` of ConsistencyTTA's students, whatever their
    scheduler's file says, else the `prediction_type` there.

    Raises:
        MusiccmError: The noise schedule is another, or the folder is neither such a student nor a teacher.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    schedule = read_json(path, "the noise schedule")
    stated = {key: schedule.get(key) for key in (*SCHEDULE, *(key for key in _OTHER_BETAS if schedule.get(key)))}
    if odd := {key: value for key, value in stated.items() if value != SCHEDULE.get(key)}:
        raise MusiccmError(f"{path}: {odd}, expected {SCHEDULER}'s schedule, {SCHEDULE}")
    unet = read_json(folder / "unet" / "config.json", "the U-Net's configuration")
    pipeline = json.dumps(read_json(folder / "model_index.json", "the pipeline").get("_class_name"))
    if "ConsistencyTTA" in pipeline or "UNet2DConditionGuidedModel" in str(unet.get("_class_name")):
        return "sample"
    kind, predicts = schedule.get("_class_name"), schedule.get("prediction_type")
    if kind not in TEACHER_SCHEDULERS or predicts not in ("epsilon", "v_prediction"):
        raise MusiccmError(
            f"{path}: _class_name is {kind!r} and prediction_type {predicts!r}, and model_index.json names the "
            f"pipeline {pipeline}; expected a teacher (epsilon or v_prediction, one of "
            f"{', '.join(TEACHER_SCHEDULERS)}), or a student in ConsistencyTTA's own pipeline. Correct the file, if "
            "the model is one of them")
    return str(predicts)


def _check_widths(parts: Mapping[str, Any]) -> None:
    """Parts of different models do not make one.

    Raises:
        MusiccmError: U-Net and VAE, U-Net and T5, or VAE and vocoder do not fit together.
    """
    unet, vae, text = parts["unet"].config, parts["vae"].config, parts["text_encoder"].config
    pairs = [("the U-Net's in_channels", unet.in_channels, "the VAE's latent channels", vae.latent_channels),
             ("the U-Net's cross-attention", unet.cross_attention_dim, "the text encoder's tokens", text.d_model)]
    for first, a, second, b in pairs:
        if a != b:
            raise MusiccmError(f"{first} has width {a}, {second} {b}: the files are not of one model")
