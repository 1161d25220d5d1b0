"""How TANGO's and ConsistencyTTA's weights were published: which file holds what, under which names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from musiccm.audio.mel import MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import check_scale_factor
from musiccm.models.convert.reading import read_original, tensors_of, under
from musiccm.texts import load_json, read_json, read_text

#: Which U-Net of a ConsistencyTTA run each choice of `--weights` is.
STUDENTS = {"ema": "student_ema_unet", "target": "student_target_unet", "raw": "student_unet",
            "teacher": "teacher_unet"}
#: The same in files of older code.
OLD_NAMES = {"diffusion_unet": "teacher_unet", "consistency_unet": "student_unet",
             "consistency_ema_unet": "student_target_unet", "consistency_slow_ema_unet": "student_ema_unet"}
#: Latents' scale of AudioLDM-S-full, whose autoencoder both systems take; training folders do not hold it.
RELEASED_SCALE = 0.9227914214134216
SCHEDULER = "stable-diffusion-2-1"
_HUB = ("pytorch_model_main.bin", "pytorch_model_vae.bin", "pytorch_model_stft.bin")
_RUNS = (("pytorch_model_2.bin", "pytorch_model.bin", "pytorch_model_1.bin"),
         ("model_2.safetensors", "model.safetensors", "model_1.safetensors"))
_EASY = ("unet_state_dict.pt", "vae_state_dict.pt")
#: Keys of stft_config.json, with ours and their type.
_STFT: dict[str, tuple[str, type]] = {
    "filter_length": ("n_fft", int), "hop_length": ("hop_length", int), "win_length": ("win_length", int),
    "n_mel_channels": ("n_mels", int), "sampling_rate": ("sample_rate_hz", int), "mel_fmin": ("fmin_hz", float),
    "mel_fmax": ("fmax_hz", float)}


@dataclass
class TtaWeights:
    """What a folder holds.

    Args:
        layout: Its kind, in words.
        path: The file with the U-Net.
        unet: Weights of the U-Net that was chosen.
        text: Weights of the T5; empty where the file has none.
        vae: Weights of the autoencoder, with its vocoder, that lie beside the U-Net; empty where there are none.
        vae_file: The autoencoder's own file.
        stft_file: The mel front end's.
        scale_factor: Of the latents, as the folder states it.
        mel: The front end, as the folder states it.
        weights: Which U-Net was chosen, of several.
        clean: Whether the U-Net gives the clean latent itself, as a consistency student, and not a velocity.
        guidance: The scale that was distilled into it: a number, `variable`, or None where that is not known.
        grid_points: Of a student, the timesteps that it was trained at, which lie evenly from clean, not counted, to
            the noisiest; None where that is not known.
        dropped: Names in the U-Net's file that nothing is made from.
        ignored: Keys in it of what is no weight.
        assumed: What the files do not say.
    """

    layout: str
    path: Path
    unet: dict[str, Tensor]
    text: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)
    vae_file: Path | None = None
    stft_file: Path | None = None
    scale_factor: float | None = None
    mel: MelConfig | None = None
    weights: str | None = None
    clean: bool = False
    guidance: float | str | None = None
    grid_points: int | None = None
    dropped: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


def read_layout(folder: str | Path, weights: str | None = None) -> TtaWeights:
    """Read a folder of one of the layouts, but for that of diffusers.

    Args:
        folder: TANGO's files from the hub; a folder that `accelerate` saved (`best/`, `epoch_7/`), with the names of
            today's code or older ones; or ConsistencyTTA's for inference alone.
        weights: One of `STUDENTS`, for a ConsistencyTTA run, and for no other.

    Returns:
        What it holds.

    Raises:
        MusiccmError: It is none of them, a file is missing, swapped with another or unreadable, or the choice of
            weights is missing or has no meaning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MusiccmError(f"--tango {folder}: no such folder; expected the files of TANGO or ConsistencyTTA")
    if (folder / _HUB[0]).is_file():
        found = _hub(folder)
    elif (folder / _EASY[0]).is_file():
        found = _easy(folder)
    elif (run := next((names for names in _RUNS if (folder / names[0]).is_file()), None)) is not None:
        found = _run(folder, run, weights)
    else:
        raise MusiccmError(f"--tango {folder}: {_instead(folder)}; expected {_HUB[0]} (TANGO on the hub), "
                           f"{_RUNS[0][0]} (a training run's best/ or epoch_N/), {_EASY[0]} (ConsistencyTTA for "
                           "inference), or model_index.json (diffusers)")
    if weights is not None and found.weights is None:
        raise MusiccmError(f"--weights {weights}: {found.path} holds one U-Net; leave the option out")
    return found


def is_diffusers(folder: str | Path) -> bool:
    """Whether a folder is of the fifth layout: diffusers' folders, with a pipeline of their own."""
    return (Path(folder) / "model_index.json").is_file()


def _hub(folder: Path) -> TtaWeights:
    path = folder / _HUB[0]
    tensors, ignored = _main(path)
    found = _tango("TANGO on the hub", path, tensors, ignored)
    config = read_json(folder / "main_config.json", "TANGO's configuration")
    _check_scheduler(folder / "main_config.json", config)
    found.vae_file, found.stft_file = _file(folder, _HUB[1]), _file(folder, _HUB[2])
    vae_config = folder / "vae_config.json"
    found.scale_factor = _scale_factor(vae_config, read_json(vae_config, "the autoencoder's configuration"))
    stft_config = folder / "stft_config.json"
    stated = read_json(stft_config, "the mel front end's configuration")
    numbers: dict[str, Any] = {
        ours: kind(_number(stft_config, stated, theirs)) for theirs, (ours, kind) in _STFT.items()}
    found.mel = MelConfig(**numbers)
    return found


def _run(folder: Path, names: tuple[str, str, str], weights: str | None) -> TtaWeights:
    path = folder / names[0]
    tensors, ignored = _main(path)
    if any(name.startswith("unet.") for name in tensors):
        found = _tango("a training run of TANGO", path, tensors, ignored)
    else:
        found = _consistency(path, tensors, ignored, weights, _arguments(folder))
    found.vae_file, found.stft_file = _file(folder, names[1]), _file(folder, names[2])
    return found


def _tango(layout: str, path: Path, tensors: Mapping[str, Tensor], ignored: list[str]) -> TtaWeights:
    """A file with one U-Net, which predicts the velocity."""
    if any(name.startswith(("group_in.", "group_out.")) for name in tensors):
        raise MusiccmError(f"{path}: its U-Net was Stable Diffusion's, with maps before and behind it (group_in, "
                           "group_out); only TANGO's own U-Net is converted")
    unet = under(tensors, "unet.")
    if not unet:
        raise MusiccmError(f"{path}: expected weights named unet..., found {', '.join(list(tensors)[:3])}; not TANGO's "
                           "main file")
    dropped = [name for name in tensors if not name.startswith(("unet.", "text_encoder."))]
    return TtaWeights(layout, path, unet, under(tensors, "text_encoder."), dropped=dropped, ignored=ignored)


def _consistency(
    path: Path, tensors: Mapping[str, Tensor], ignored: list[str], weights: str | None, arguments: Mapping[str, Any]
) -> TtaWeights:
    """A file with teacher and student, and averages of the student."""
    named, old = _renamed(tensors)
    there = [choice for choice, prefix in STUDENTS.items() if any(name.startswith(f"{prefix}.") for name in named)]
    if not there:
        raise MusiccmError(f"{path}: expected weights named unet... (TANGO) or student_unet... (ConsistencyTTA), found "
                           f"{', '.join(list(tensors)[:3])}; not a main file of either")
    assumed = []
    if old and "ema" not in there and "target" in there:
        # as their own reading of old files: the one average stands for both
        there.append("ema")
        assumed.append(f"ema is the run's only average ({old}), as its own code reads such files")
        named |= {name.replace("student_target_", "student_ema_", 1): value for name, value in named.items()
                  if name.startswith("student_target_")}
    if weights not in there:
        raise MusiccmError(f"--weights: expected one of {', '.join(there)} (the U-Nets in {path}; ConsistencyTTA "
                           f"samples with ema), found {weights or 'nothing'}")
    prefix = f"{STUDENTS[weights]}."
    source = {new: name for name, new in ((name, _new_name(name)) for name in tensors)}
    taken = {source.get(name, name) for name in named if name.startswith((prefix, "text_encoder."))}
    if weights == "ema" and assumed:
        taken |= {name for name in tensors if _new_name(name).startswith("student_target_unet.")}
    vae = under(tensors, "vae.")
    dropped = [name for name in tensors if name not in taken and not name.startswith("vae.")]
    stage = 2 if "target" in there else 1
    if arguments and arguments.get("stage") not in (None, stage):
        raise MusiccmError(f"{path}: is of stage {stage} by its weights, and of stage {arguments['stage']} by "
                           "summary.jsonl; the two are from different runs")
    if not arguments:
        assumed.append("the run's own options are not known, for summary.jsonl is not there")
    else:
        _check_scheduler(path.parent / "summary.jsonl", arguments)
    scale = None if weights == "teacher" else arguments.get("teacher_guidance_scale")
    clean = stage == 2 and weights != "teacher"
    return TtaWeights(
        "a training run of ConsistencyTTA" + (", old names" if old else ""), path, under(named, prefix),
        under(named, "text_encoder."), vae, weights=weights, clean=clean,
        guidance="variable" if scale == -1 else scale,
        grid_points=_grid_points(path.parent / "summary.jsonl", arguments) if clean else None, dropped=dropped,
        ignored=ignored, assumed=assumed)


def _easy(folder: Path) -> TtaWeights:
    path, vae_file = folder / _EASY[0], folder / _EASY[1]
    tensors, ignored = _main(path)
    found = TtaWeights("ConsistencyTTA for inference", path, dict(tensors), vae_file=_file(folder, _EASY[1]),
                       clean=True, ignored=ignored)
    if not vae_file.is_file():
        return found
    content = read_original(vae_file, weights_only=True)
    found.scale_factor = _scale_factor(vae_file, content)
    return found


def _main(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    tensors, ignored = tensors_of(read_original(path, weights_only=True), path)
    if any(name.startswith(("encoder.down.", "decoder.up.")) for name in tensors):
        raise MusiccmError(f"{path}: holds an autoencoder (encoder.down..., decoder.up...), where the U-Net belongs; "
                           "are the VAE's and the main file swapped?")
    return tensors, ignored


def check_autoencoder(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse a main file in the place of the autoencoder's.

    Raises:
        MusiccmError: It is one.
    """
    if any("unet." in name or name.startswith(("text_encoder.", "down_blocks.")) for name in tensors):
        raise MusiccmError(f"{path}: holds a U-Net or text encoder, where the autoencoder belongs; are the VAE's and "
                           "the main file swapped?")


def _new_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return f"{OLD_NAMES.get(first, first)}{dot}{rest}"


def _renamed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights under today's names, and an old name that was found; none where there is none."""
    old = next((name for name in tensors if name.partition(".")[0] in OLD_NAMES), "")
    return {_new_name(name): value for name, value in tensors.items()}, old.partition(".")[0]


def _arguments(folder: Path) -> dict[str, Any]:
    """The options of a run, the first line of its summary.jsonl."""
    path = next((path for path in (folder / "summary.jsonl", folder.parent / "summary.jsonl") if path.is_file()), None)
    if path is None:
        return {}
    try:
        found = load_json(read_text(path).split("\n", 1)[0])
    except (ValueError, OSError) as error:
        raise MusiccmError(f"{path}: expected the run's options in JSON in the first line ({error})") from error
    if not isinstance(found, dict):
        raise MusiccmError(f"{path}: expected the run's options, an object in JSON, found {json.dumps(found)[:60]}")
    return found


def _check_scheduler(path: Path, config: Mapping[str, Any]) -> None:
    name = config.get("scheduler_name")
    if name is not None and SCHEDULER not in str(name):
        raise MusiccmError(f"{path}: scheduler_name is {name!r}; only {SCHEDULER}'s schedule is known, which all "
                           "published weights were trained with")


def _grid_points(path: Path, arguments: Mapping[str, Any]) -> int | None:
    """Where a student was trained: Heun's timesteps, `linspace(0, 999, num_diffusion_steps)`, without clean.

    Raises:
        MusiccmError: The run's options say that it was trained at others, or at no number of them.
    """
    if arguments.get("use_edm", True) is not True or arguments.get("use_karras"):
        raise MusiccmError(f"{path}: use_edm is {arguments.get('use_edm')!r} and use_karras "
                           f"{arguments.get('use_karras')!r}: its student was trained at other timesteps than Heun's "
                           "(use_edm true, use_karras false), the only ones that are known here and that published "
                           "weights have; its teacher can be converted (--weights teacher)")
    steps = arguments.get("num_diffusion_steps")
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 1000:
        raise MusiccmError(f"{path}: num_diffusion_steps is {steps!r}; expected a whole number from 2 to 1000")
    return steps - 1


def _scale_factor(path: Path, content: Mapping[str, Any]) -> float:
    """By what the latents are multiplied, as a file states it."""
    return check_scale_factor(_number(path, content, "scale_factor"), f"{path}: scale_factor")


def _number(path: Path, content: Mapping[str, Any], key: str) -> float:
    value = content.get(key)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MusiccmError(f"{path}: expected a number under {key}, found {value!r}")
    return value


def _file(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _instead(folder: Path) -> str:
    """What lies there instead of the files."""
    inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and any(
        (path / name).is_file() for name in (_HUB[0], _EASY[0], *(names[0] for names in _RUNS)))]
    if inner:
        return f"the files lie in {', '.join(inner)}: name one of them"
    return f"found {', '.join(path.name for path in sorted(folder.iterdir())[:5]) or 'nothing'}"
