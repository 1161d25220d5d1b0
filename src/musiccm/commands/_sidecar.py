"""`generate --from-sidecar`: what a server made once is made again, from the JSON that it gave beside the sound."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.bounds import MAX_WHOLE_S
from musiccm.commands._edits import EDITS
from musiccm.errors import MusiccmError
from musiccm.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from musiccm.pipeline import Pipeline
    from musiccm.serving.sidecar import Sidecar

#: What the sidecar states, so that the command line must not, with the value that says that it does not.
_STATED: dict[str, Any] = {
    "prompts": [], "prompts_file": None, "only": None, "level": None, "steps": None, "seed": 0, "guidance_scale": None,
    "sampler": None, "gamma": None, "schedule": None, "decoder": None, "half": False, "seconds": None, "at": [],
    "stream": False, "overlap": None, "fusion": None, "from_": None, "to": None, "strength": None,
}


def take_over(args: argparse.Namespace, default_model: str) -> Sidecar:
    """Read a sidecar, and put what it states into the arguments.

    Args:
        args: Of the command; changed.
        default_model: What `--model` is where it is not given.

    Returns:
        The sidecar.

    Raises:
        MusiccmError: It is none, an option states what it states already, or the clip of an edit is missing or another.
    """
    from musiccm.serving.limits import Limits
    from musiccm.serving.sidecar import Sidecar

    path = Path(args.from_sidecar)
    for name, unset in _STATED.items():
        if getattr(args, name) != unset:
            raise MusiccmError(f"--from-sidecar {path}: it states all that fixes the sound; leave out "
                               f"{'the prompts' if name == 'prompts' else '--' + name.strip('_').replace('_', '-')}")
    sidecar = Sidecar.read(path)
    request = sidecar.request
    try:
        request.check(Limits(max_seconds=MAX_WHOLE_S, max_steps=10**6, max_prompt_chars=10**6, max_prompts=10**6,
                             max_upload_s=MAX_WHOLE_S))
        if request.task == "stream" or request.seed is None:
            raise MusiccmError("expected what is whole, with its seed")
    except MusiccmError as error:
        raise MusiccmError(f"{path}: request: {error}") from error
    _take_clip(args, sidecar, path)
    args.prompts, args.at = [request.text], [[start, text] for start, text in request.prompts[1:]]
    args.seconds, args.steps, args.seed, args.level = request.seconds, request.steps, request.seed, request.level
    args.guidance_scale, args.overlap, args.fusion = request.guidance_scale, request.overlap, request.fusion
    args.strength, args.from_, args.to = request.strength, request.from_s, request.to_s
    args.decoder, args.half = sidecar.settings["decoder"], bool(sidecar.settings["half"])
    sampler = dict(request.sampler or {})
    args.sampler, args.gamma, args.schedule = (sampler.get(key) for key in ("name", "gamma", "schedule"))
    if args.model == default_model:
        args.model = request.model
    return sidecar


def _take_clip(args: argparse.Namespace, sidecar: Sidecar, path: Path) -> None:
    """The clip that an edit is made of comes on the command line, and is compared."""
    given = {kind: getattr(args, f"{kind}_") for kind in EDITS}
    task = sidecar.request.task
    stray = next((kind for kind, file in given.items() if file is not None and kind != task), None)
    if stray is not None:
        raise MusiccmError(f"--{stray}: {path} is of the task {task}; leave it out")
    if task not in EDITS:
        return
    if given[task] is None:
        raise MusiccmError(f"--from-sidecar {path}: the task {task} is made of a clip, which the sidecar does not "
                           f"hold; add --{task} FILE, the clip that was uploaded")
    clip = Path(given[task])
    if clip.is_file() and file_sha256(clip) != sidecar.source_sha256:
        raise MusiccmError(f"--{task} {clip}: is not the clip that {path} was made of, which has the SHA-256 "
                           f"{sidecar.source_sha256}")


def check_model(pipeline: Pipeline, sidecar: Sidecar, path: str) -> None:
    """Refuse other weights than those that the sidecar was made with.

    Raises:
        MusiccmError: They are others.
    """
    found = pipeline.bundle.content_hash()
    if sidecar.content_hash and found != sidecar.content_hash:
        raise MusiccmError(f"{path}: was made with weights of the hash {sidecar.content_hash[:16]}..., and "
                           f"{pipeline.bundle.path} has {found[:16]}...; name the model by --model")


def says(sidecar: Sidecar, waveforms_CS: Sequence[Tensor]) -> str:
    """Whether what was made is the same to the bit."""
    from musiccm.serving.sidecar import samples_sha256

    if [samples_sha256(waveform_CS) for waveform_CS in waveforms_CS] == [sidecar.samples_sha256]:
        return "the samples are those of the sidecar, to the bit"
    return ("the samples are not those of the sidecar to the bit: another machine, device, version or number of "
            "threads rounds otherwise (see computed_by and version there)")
