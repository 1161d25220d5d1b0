"""turn a run's checkpoint into a model directory that `generate` and diffusers read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError, reason
from musiccm.terminal import say
from musiccm.texts import load_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

STUDENT_WEIGHTS = "student_ema_slow.module."
"""Prefix, in a Lightning checkpoint, of the averaged U-Net that the evaluator measures."""

DECODER_OF = {"teacher": "original", "student": "original", "student_fast": "fast"}
"""Models of a results.json that a student's card shows, and what made sound of their latents."""


def main(argv: list[str]) -> int:
    """Run `musiccm export`.

    Args:
        argv: The arguments behind `export`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    import torch

    from musiccm.export import StudentInfo, export_student
    from musiccm.models.bundle import Bundle
    from musiccm.systems.checkpoint_fit import MEANING
    from musiccm.systems.settings import Distillation

    checkpoint = Path(args.checkpoint)
    config_path = Path(args.config) if args.config else checkpoint.parent.parent / "config.yaml"
    settings = read_model_settings(config_path)
    stated = settings.get("distillation") or {}
    defaults = asdict(Distillation())
    known = {key: stated.get(key, default) for key, default in defaults.items()}
    state, step, identity = read_student(checkpoint)
    trained = {key.removeprefix("distillation."): value for key, value in identity.items()}  # some have no prefix
    for key in (*(key.removeprefix("distillation.") for key in MEANING), "guidance_scale"):
        if trained.get(key, known[key]) != known[key]:
            raise MusiccmError(f"{checkpoint}: its student was trained with {key} = {trained[key]!r}, but "
                               f"{config_path} says {known[key]!r}; name the config.yaml of its own run by --config")
    teacher = Bundle.from_pretrained(args.bundle or settings.get("bundle", "musiccm-tiny"))
    unet = load_student(teacher, state, checkpoint)
    results = Path(args.results) if args.results else checkpoint.parent.parent / "results.json"
    rows, gamma, notes = read_results(results, must_exist=args.results is not None)
    info = StudentInfo(
        prediction_type=known["prediction_type"], guidance_scale=float(known["guidance_scale"]),
        grid_points=int(known["grid_points"]), timestep_scaling=float(known["timestep_scaling"]),
        sigma_data=float(known["sigma_data"]), gamma=gamma if args.gamma is None else args.gamma,
        recipe={"teacher": str(settings.get("bundle", "musiccm-tiny")), "global_step": step,
                "seed": settings.get("seed"), "distillation": known, "adversarial": settings.get("adversarial"),
                "optimization": settings.get("optimization")},
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


def read_student(path: Path) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """The averaged student's weights, the step and what the weights mean, from a Lightning checkpoint.

    Nothing in the file is executed.

    Raises:
        MusiccmError: If the file is missing, unreadable, or of another system.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        hint = "runs keep theirs in lightning_logs/NAME/version_N/checkpoints"
        raise MusiccmError(f"{path}: no such checkpoint; {hint}") from None
    except Exception as error:  # a broken file shows as whatever the unpickler tripped over
        raise MusiccmError(f"{path}: not a readable checkpoint ({reason(error)})") from error
    weights = checkpoint.get("state_dict", {}) if isinstance(checkpoint, Mapping) else {}
    state = {k.removeprefix(STUDENT_WEIGHTS): v for k, v in weights.items() if k.startswith(STUDENT_WEIGHTS)}
    if not state:
        raise MusiccmError(f"{path}: holds no '{STUDENT_WEIGHTS}*' weights; expected a checkpoint of the distillation "
                           "(musiccm.systems.musiccm.MusicCM)")
    return state, int(checkpoint.get("global_step", 0)), dict(checkpoint.get("student", {}))


def load_student(teacher: Any, state: dict[str, Tensor], path: Path) -> Any:
    """A U-Net of the teacher's shape with the student's weights.

    Raises:
        MusiccmError: If the weights are of another shape than the teacher.
    """
    import copy

    unet = copy.deepcopy(teacher.unet)
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise MusiccmError(f"{path}: its weights do not fit the teacher {teacher.path} ({reason}); name the bundle of "
                           "the run by --bundle") from None
    return unet


def read_results(path: Path, must_exist: bool) -> tuple[list[dict[str, Any]], float, list[str]]:
    """The rows of a results.json about the student and its teacher, the gamma that the student was sampled with, and
    what SIM_AA was compared with and the times were taken on.

    Each row is given its `decoder` and, the student's, its `gamma`; times of another run are left out. Without a file,
    no rows and gamma 1.

    Raises:
        MusiccmError: If the file is not one of ours, or is missing though it was asked for.
    """
    from musiccm.evaluation.galleries import described
    from musiccm.evaluation.results import timed

    if not path.is_file() and not must_exist:
        return [], 1.0, []
    try:
        results = load_json(read_text(path))
        gamma = float(results.get("gamma", 1.0))
        rows = [described_row(timed(row), gamma) for row in results["rows"] if row["model"] in DECODER_OF]
        notes = list(described(results.get("sim_aa_gallery") or {}))
        if any(row.get("latency_s") is not None for row in rows) and (where := results.get("machine")):
            notes.append("Times: " + ", ".join(f"{key} {value}" for key, value in where.items()))
        return rows, gamma, notes
    except FileNotFoundError:
        raise MusiccmError(f"{path}: no such results file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MusiccmError(f"{path}: expected a results.json with 'rows' ({error})") from None


def described_row(row: Mapping[str, Any], gamma: float) -> dict[str, Any]:
    """A row of results with what is the same for a whole run: the decoder of each model, and the student's gamma."""
    drawn = None if row["model"] == "teacher" else gamma
    own = {"model": row["model"], "steps": row.get("steps"), "decoder": DECODER_OF[row["model"]], "gamma": drawn}
    return {**own, **row}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm export", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="lightning_logs/NAME/version_N/checkpoints/FILE.ckpt")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--config", help="the run's config.yaml (default: beside the checkpoint's folder)")
    parser.add_argument("--bundle", help="the teacher's bundle (default: the one that the run names)")
    parser.add_argument("--results", help="results.json for the card (default: the run's, if it has one)")
    parser.add_argument("--base", help="borrow the other parts instead of copying them: ../NAME beside --out, "
                                         "a packaged name or a hub id")
    parser.add_argument("--gamma", type=float,
                        help="the sampler's default share of fresh noise (default: that of the results, or 1)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the weights on disk")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    return parser
