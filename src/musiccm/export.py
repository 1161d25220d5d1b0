"""From a trained student to a directory that makes music: the diffusers layout, its scheduler, a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musiccm.diffusion import NoiseProcess, StudentGuidance, noise_process, process_class
from musiccm.errors import MusiccmError
from musiccm.files import naming_full_disk, replacing_folder
from musiccm.models.attention_heads import own_heads
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.borrow import borrowed_parts
from musiccm.models.bundle.card import write_card
from musiccm.models.bundle.files import (
    PARTS,
    TRAINING_INDEX,
    WORDS,
    load_part,
    pipeline_class,
    save_part,
    update_json,
)
from musiccm.models.bundle.student_record import (
    LCM_SIGMA_DATA,
    guidance_record,
    sampler_record,
    scheduler_class,
)
from musiccm.models.bundle.training_words import words_folder
from musiccm.models.denoiser import takes_scale
from musiccm.samplers import SamplerSpec, suited_sampler


@dataclass(frozen=True)
class StudentInfo:
    """How a student was trained, as far as whoever loads it must know.

    Args:
        prediction_type: What its U-Net predicts, one of `PREDICTION_TYPES`.
        guidance_scale: The teacher's guidance that was distilled into it, or the default of a student that takes one.
        grid_points: Points of its timestep grid.
        grid: How they lie: `even` or `linspace`, see `student_grid`.
        timestep_scaling: Of the boundary condition.
        sigma_data: Of the boundary condition.
        sampler: The sampler that it is sampled by unless another is asked for, see `make_sampler`.
        recipe: Anything else worth keeping: losses, steps, seeds.
        rows: Rows of its results.json, for the card.
        notes: Sentences about them, such as what SIM_AA was compared with.
        guidance: How it is guided: `fixed`, `variable` or `direct`, see `GUIDANCE_KINDS`.
        guidance_range: The scales that a variable student was trained on.
    """

    prediction_type: str
    guidance_scale: float
    grid_points: int = 50
    grid: str = "even"
    timestep_scaling: float = 10.0
    sigma_data: float = LCM_SIGMA_DATA
    sampler: SamplerSpec = "lcm"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    guidance: str = "fixed"
    guidance_range: tuple[float, float] = (0.0, 6.0)


def student_scheduler(teacher_config: Mapping[str, Any], info: StudentInfo) -> Any:
    """The scheduler file of a student.

    Args:
        teacher_config: The teacher's scheduler configuration; its noise process is the student's.
        info: The student.

    Returns:
        The `LCMScheduler` that samples the student in diffusers as our `lcm` does (at gamma 1), for a teacher
        with betas. For a rectified flow and for the angle process the configuration itself: diffusers'
        `FlowMatchLCMScheduler` reads the former and ignores the grid's keys, for the latter it has no class. Nor has it
        one for a student of a `linspace` grid of a teacher with betas: `LCMScheduler` cannot state timesteps between
        whole ones, and the file of such a student has a class name that diffusers does not know.

    Raises:
        MusiccmError: If the student's sigma_data is not the 0.5 that diffusers has fixed, or its noise process cannot
            be exported.
    """
    if info.sigma_data != LCM_SIGMA_DATA:
        raise MusiccmError(f"sigma_data: the exported scheduler can only be {LCM_SIGMA_DATA}, found {info.sigma_data}; "
                           "train with the default")
    process = noise_process(teacher_config)
    own = {"prediction_type": info.prediction_type, "original_inference_steps": info.grid_points,
           "timestep_scaling": info.timestep_scaling}
    name = scheduler_class(process, info.grid)
    if info.grid != "even":  # without the key, as all were before there was another
        own["grid"] = info.grid
    stated = {"_class_name": name, "num_train_timesteps": process.num_train_timesteps, **process.config(), **own}
    _check_read_back(process, stated)
    if name == "LCMScheduler":
        from diffusers import LCMScheduler

        return LCMScheduler(**{key: value for key, value in stated.items() if key != "_class_name"}, clip_sample=False)
    return stated


def _check_read_back(process: NoiseProcess, stated: Mapping[str, Any]) -> None:
    """Refuse to export a noise process that its file would not give back: its student would be sampled wrongly."""
    kind, found = type(process), process_class(stated)
    if found is not kind:
        raise MusiccmError(f"{kind.__name__}: a file with _class_name {stated['_class_name']!r} is read as a "
                           f"{found.__name__}; name the class in FAMILIES of musiccm/diffusion/families.py")
    read, t_B = noise_process(stated), torch.arange(process.num_train_timesteps)
    for name in ("alpha", "sigma", "network_time"):
        if not torch.allclose(getattr(process, name)(t_B), getattr(read, name)(t_B), rtol=1e-5, atol=1e-7):
            raise MusiccmError(f"{kind.__name__}: its config() states {process.config()}, from which from_config "
                               f"builds one of another {name}; config() must state all its parameters")


def export_student(
    unet: nn.Module,
    teacher: Bundle,
    folder: str | Path,
    info: StudentInfo,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a student as a bundle.

    Args:
        unet: The student's U-Net with the weights that were evaluated.
        teacher: The bundle that it was distilled from; the other parts are copied from it, byte by byte.
        folder: Directory to write.
        info: How it was trained.
        dtype: Type of the U-Net's weights on disk, such as float16.
        base: Do not copy the other parts but borrow them from this bundle: a packaged name, a hub id, or a path
            relative to `folder`. They must be the same files, and are checked again at loading.
        overwrite: Replace what lies in `folder`.

    Returns:
        The directory.

    Raises:
        MusiccmError: If the folder is in use or being made by another process, a weight is not finite, the U-Net is not
            of the guidance that is stated, or `base` has other parts than the teacher.
    """
    folder = Path(folder)
    _refuse_to_overwrite(folder, overwrite)
    sampler = suited_sampler(info.sampler, student=True)
    guidance = StudentGuidance(info.guidance, info.guidance_scale, info.guidance_range)
    told = takes_scale(unet.config)  # type: ignore[arg-type]
    if told != (guidance.kind == "variable"):
        raise MusiccmError(f"guidance: the student is said to be {guidance.kind}, and its U-Net has "
                           f"{'a' if told else 'no'} guidance branch, which variable students alone have; state what "
                           "it was trained with")
    limit = torch.finfo(dtype or torch.float32).max
    broken = [k for k, v in unet.state_dict().items() if not (v.abs() <= limit).all()]
    if broken:
        raise MusiccmError(f"the student's weights are not finite in {dtype or torch.float32} ({broken[0]} and "
                           f"{len(broken) - 1} more); the run has diverged, or needs a wider type")
    scheduler = student_scheduler(teacher.scheduler_config, info)

    with replacing_folder(folder, overwrite) as partial:
        _refuse_to_overwrite(folder, overwrite)  # as it is now that no other process can make it
        _write(partial, folder, unet, scheduler, teacher, info, guidance, sampler.spec, dtype, base)
    return folder


def _refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise MusiccmError(f"{folder}: exists and is not empty; choose another folder, or ask to overwrite it")
        if not (folder / "model_index.json").is_file():
            raise MusiccmError(f"{folder}: is no bundle (no model_index.json), and nothing else is overwritten; choose "
                               "another folder")


def _write(
    partial: Path, folder: Path, unet: nn.Module, scheduler: Any, teacher: Bundle, info: StudentInfo,
    guidance: StudentGuidance, sampler: dict[str, Any], dtype: torch.dtype | None, base: str | None,
) -> None:
    """Fill `partial` with what will be `folder`."""
    partial.mkdir(parents=True)
    network = teacher.kind.network
    others = [part for part in teacher.index if part in PARTS and part not in (network, "scheduler")]
    others += [part for part in teacher.kind.unlisted(teacher) if part not in others]
    borrowed = {} if base is None else {"base": borrowed_parts(base, folder, teacher, others)}
    for part in others:
        if part in teacher.index:
            update_json(partial / "model_index.json", {part: teacher.index[part]})
        if base is None:
            with naming_full_disk(folder / part):
                shutil.copytree(teacher.root_of(part) / part, partial / part)
    # What the teacher was trained on, and its words; a student that borrows finds them in its base.
    for name, found in ((TRAINING_INDEX, teacher.root_of(TRAINING_INDEX) / TRAINING_INDEX),
                        (WORDS, words_folder(teacher))):
        if base is None and found is not None and found.is_dir():
            with naming_full_disk(folder / name):
                shutil.copytree(found, partial / name)
    save_part(partial, network, unet, dtype)
    if network == "unet":
        save_settings(partial, **own_heads(unet.config))  # type: ignore[arg-type]
    save_part(partial, "scheduler", scheduler)
    if teacher.gives_tokens:  # a borrowed encoder does not lie here to tell
        update_json(partial / "model_index.json", {"_class_name": pipeline_class(teacher.root_of("text_encoder"))})
    record = {
        **guidance_record(guidance),
        "sampler": dict(sampler),
        **sampler_record(load_part(partial, "scheduler")),
        "recipe": dict(info.recipe),
    }
    rows = [dict(row) for row in info.rows]
    kept = {key: teacher.settings[key] for key in teacher.kind.settings if key in teacher.settings}
    save_settings(
        partial, **kept, mel=teacher.mel, latent_patch=teacher.latent_patch, distillation=record, results=rows,
        results_notes=list(info.notes), **borrowed
    )
    write_card(partial / "README.md", folder.name, record, rows, teacher.latent_shape(), base, info.notes,
               teacher.gives_tokens)
