"""turn a run's checkpoint into a model directory that `generate` and diffusers read; or compile a model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.commands._compiled import add_options, check_options, export_compiled
from musiccm.errors import MusiccmError
from musiccm.systems.student_weights import load_student, read_student
from musiccm.terminal import say
from musiccm.texts import load_json, read_text

if TYPE_CHECKING:
    from musiccm.models.bundle import Bundle

log = logging.getLogger(__name__)

OWN_SETTINGS = ("bundle", "teacher", "seed", "distillation", "adversarial", "optimization")
"""Settings that the recipe of every student has; other objectives have more."""


def main(argv: list[str]) -> int:
    """Run `musiccm export`.

    Args:
        argv: The arguments behind `export`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    check_options(args)
    if args.compiled is not None:
        export_compiled(args)
        return 0
    import torch

    from musiccm.export import StudentInfo, export_student
    from musiccm.models.bundle import Bundle
    from musiccm.models.lora import Lora
    from musiccm.samplers import make_sampler
    from musiccm.systems.checkpoint_fit import MEANING
    from musiccm.systems.settings import Distillation

    checkpoint = Path(args.checkpoint)
    config_path = Path(args.config) if args.config else checkpoint.parent.parent / "config.yaml"
    settings = read_model_settings(config_path)
    stated = settings.get("distillation") or {}
    defaults = asdict(Distillation())
    known = {key: stated.get(key, default) for key, default in defaults.items()}
    if known["lora"] is not None:
        known["lora"] = asdict(Lora(**known["lora"]))
    state, step, identity = read_student(checkpoint)
    # some have no prefix; an objective's own arguments, which have none either, come first and lose
    trained = {key.removeprefix("distillation."): identity[key] for key in sorted(identity, key=lambda key: "." in key)}
    if trained.get("lora") is not None:
        trained["lora"] = asdict(Lora(**trained["lora"]))
    for key in (*(key.removeprefix("distillation.") for key in MEANING), "guidance_scale"):
        found = trained.get(key, defaults[key] if key in ("lora", "guidance", "grid") else known[key])
        if found != known[key]:
            raise MusiccmError(f"{checkpoint}: its student was trained with {key} = {found!r}, but "
                               f"{config_path} says {known[key]!r}; name the config.yaml of its own run by --config")
    teacher = Bundle.from_pretrained(args.bundle or settings.get("bundle", "musiccm-tiny"))
    unet = load_student(teacher, state, checkpoint, known["lora"] and Lora(**known["lora"]), identity.get("bundle"))
    results = Path(args.results) if args.results else checkpoint.parent.parent / "results.json"
    rows, sampler, notes = read_results(results, args.results is not None, checkpoint)
    low, high = (float(end) for end in known["guidance_range"])
    info = StudentInfo(
        prediction_type=known["prediction_type"], guidance_scale=float(known["guidance_scale"]),
        guidance=known["guidance"], guidance_range=(low, high),
        grid_points=int(known["grid_points"]), grid=known["grid"],
        timestep_scaling=float(known["timestep_scaling"]),
        sigma_data=float(known["sigma_data"]), sampler=make_sampler(args.sampler or sampler, args.gamma),
        recipe={**teacher_record(settings, args.bundle, teacher, identity), "global_step": step,
                "seed": settings.get("seed"), "distillation": known, "adversarial": settings.get("adversarial"),
                "optimization": settings.get("optimization"),
                **{key: value for key, value in settings.items() if key not in OWN_SETTINGS}},
        rows=rows, notes=notes,
    )
    folder = export_student(unet, teacher, args.out, info, getattr(torch, args.dtype), args.base, args.overwrite)
    say(f"{folder}: the student at step {step}; try\n  musiccm generate \"a calm piano melody\" --model {folder}")
    return 0


def read_model_settings(path: Path) -> dict[str, Any]:
    """The model's arguments from a run's `config.yaml`.

    Raises:
        MusiccmError: If the file is missing or describes no model.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        hint = "a run leaves its config.yaml beside checkpoints/; name it by --config"
        raise MusiccmError(f"{path}: not found; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MusiccmError(f"{path}: not valid YAML ({error})") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise MusiccmError(f"{path}: expected the configuration of a run, with a key 'model'")
    return model.get("init_args", model)


def teacher_record(
    settings: Mapping[str, Any], named: str | None, teacher: Bundle, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What a student's recipe says of its teacher.

    Args:
        settings: The model's arguments of the run.
        named: The bundle that was named in place of the run's, if any.
        teacher: The bundle.
        identity: What the checkpoint says of its run.

    Returns:
        `teacher`, the bundle's name, and `teacher_hash`, its `denoiser_hash`: null where the checkpoint does not say
        that this bundle taught it. Of a run with another denoiser as its teacher, that one's settings, and null.
    """
    from musiccm.systems.checkpoint_fit import bundle_identity

    if settings.get("teacher") is not None:
        return {"teacher": settings["teacher"], "teacher_hash": None}
    taught = identity.get("bundle") == bundle_identity(teacher)
    return {"teacher": str(named or settings.get("bundle", "musiccm-tiny")),
            "teacher_hash": teacher.denoiser_hash() if taught else None}


def read_results(
    path: Path, must_exist: bool, checkpoint: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """The rows of a results.json about the student and its teacher, the sampler that the student was scored with, and
    what SIM_AA was compared with and the times were taken on.

    Each row is given its `decoder`, and its `sampler` where it is of version 0.1; times of another run are left out.
    Without a file, no rows and `lcm`; likewise, with a warning, where it was measured on other weights.

    Args:
        path: The file.
        must_exist: Whether it was asked for.
        checkpoint: Whose weights it must have been measured on; None for any.

    Raises:
        MusiccmError: If the file is not one of ours, or is missing, or of other weights, though it was asked for.
    """
    from musiccm.commands._measured_on import measured_elsewhere
    from musiccm.evaluation.candidates import compared_model
    from musiccm.evaluation.galleries import described
    from musiccm.evaluation.results import timed
    from musiccm.models.bundle.student_record import recorded_sampler

    if not path.is_file() and not must_exist:
        return [], recorded_sampler({}), []
    try:
        results = load_json(read_text(path))
        if checkpoint is not None and (why := measured_elsewhere(results, checkpoint)) is not None:
            if must_exist:
                raise MusiccmError(f"--results {path}: measured {why}; name the results of these weights, or evaluate "
                                   "them by `musiccm test --ckpt_path`")
            log.warning("%s is left out, as is its sampler: it was measured %s; evaluate these weights by `musiccm "
                        "test --ckpt_path`, and export again", path, why)
            return [], recorded_sampler({}), []
        sampler = recorded_sampler(results)
        rows = [described_row(timed(row), sampler) for row in results["rows"] if compared_model(row["model"]).own]
        notes = list(described(results.get("sim_aa_gallery") or {}))
        if any(row.get("latency_s") is not None for row in rows) and (where := results.get("machine")):
            notes.append("Times: " + ", ".join(f"{key} {value}" for key, value in where.items()))
        return rows, sampler, notes
    except FileNotFoundError:
        raise MusiccmError(f"{path}: no such results file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MusiccmError(f"{path}: expected a results.json with 'rows' ({error})") from None


def described_row(row: Mapping[str, Any], sampler: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results with what is the same for a whole run: each model's decoder, and its sampler."""
    from musiccm.evaluation.candidates import compared_model
    from musiccm.evaluation.comparison import FLOOR
    from musiccm.evaluation.rows import decoder_of, model_of
    from musiccm.samplers import make_sampler

    model = compared_model(row["model"])
    own = {"model": row["model"], "steps": row.get("steps"), "decoder": decoder_of(row)}
    if model.name != FLOOR:  # which nothing sampled; rows of version 0.1 do not state how they were
        own["sampler"] = str(make_sampler("ddim" if model.teacher else sampler))
    return {**own, **row, "model": model_of(row)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm export", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="lightning_logs/NAME/version_N/checkpoints/FILE.ckpt")
    what.add_argument("--compiled", metavar="MODEL",
                      help="a directory, packaged bundle or hub id: write its networks as machine code for this device "
                           "and PyTorch, which `generate --compiled` and `serve --compiled` load instead of compiling")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--config", help="the run's config.yaml (default: beside the checkpoint's folder)")
    parser.add_argument("--bundle", help="the teacher's bundle (default: the one that the run names)")
    parser.add_argument("--results", help="results.json for the card, measured on this checkpoint (default: the "
                                          "run's, if it has one that was)")
    parser.add_argument("--base", help="borrow the other parts instead of copying them: ../NAME beside --out, "
                                         "a packaged name or a hub id")
    parser.add_argument("--sampler", help="the student's default sampler (default: that of the results, or lcm)")
    parser.add_argument("--gamma", type=float, help="the sampler's gamma (default: that of the results, or its own)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the weights on disk")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    add_options(parser)
    return parser
