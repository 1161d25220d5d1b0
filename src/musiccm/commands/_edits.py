"""What `generate` does with music that is there: it goes on, is mended or varied, and the seams are measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musiccm.commands._outputs import STDOUT
from musiccm.texts import short

if TYPE_CHECKING:
    from musiccm.long_form import Edited, SeamMetrics
    from musiccm.pipeline import Pipeline
    from musiccm.samplers import Sampler

EDITS = ("continue", "inpaint", "vary")
DEFAULT_STRENGTH = 0.4


def edit_of(args: argparse.Namespace) -> str | None:
    """Which edit was asked for, if any."""
    return next((kind for kind in EDITS if getattr(args, f"{kind}_") is not None), None)


def edited_clips(
    pipeline: Pipeline, args: argparse.Namespace, sampler: Sampler, changes: Sequence[tuple[float, str]],
    paths: Sequence[Path],
) -> list[Edited]:
    """Continue, mend or vary a clip, once a prompt.

    Args:
        pipeline: The model.
        args: Of the command.
        sampler: The sampler.
        changes: Texts from later on.
        paths: Files that it is for; none for the standard output.

    Returns:
        What was made, a prompt each.

    Raises:
        MusiccmError: The clip cannot be used, or a file's format does not take its channels or its rate.
    """
    from musiccm.audio.original import encoded
    from musiccm.long_form import Editor, read_clip
    from musiccm.samplers import prompt_seeds

    kind = edit_of(args)
    clip = read_clip(pipeline, getattr(args, f"{kind}_"))
    for path in paths:  # before anything is computed
        own = clip.original
        encoded(own.waveform_CS[:, :1024], own.sample_rate_hz, own.form, path.suffix, str(path))
    made = []
    for prompt, noise_seed in zip(args.prompts, prompt_seeds(args.seed, len(args.prompts)), strict=True):
        editor = Editor(pipeline, noise_seed, args.steps, args.guidance_scale, overlap=args.overlap,
                        fusion=args.fusion, sampler=sampler)
        plan = [(0.0, prompt), *changes]
        if kind == "continue":
            made.append(editor.extend(clip, plan, args.seconds))
        elif kind == "inpaint":
            made.append(editor.inpaint(clip, plan, args.from_, args.to))
        else:
            made.append(editor.vary(clip, plan, DEFAULT_STRENGTH if args.strength is None else args.strength))
    return made


def write_edits(
    edits: Sequence[Edited], args: argparse.Namespace, paths: Sequence[Path], tell: Callable[[str], None]
) -> float:
    """Write edits in their clip's sample format, and say of each what is kept and whether a seam stands out.

    Args:
        edits: What was made.
        args: Of the command.
        paths: Where to; none for the standard output.
        tell: Takes a line.

    Returns:
        Seconds of one.
    """
    from musiccm.audio.original import encoded
    from musiccm.long_form import seam_metrics

    targets: list[Path | None] = [*paths] or [None]
    for edited, prompt, path in zip(edits, args.prompts, targets, strict=True):
        suffix = ".wav" if path is None else path.suffix
        if path is None:
            sys.stdout.buffer.write(encoded(edited.waveform_CS, edited.sample_rate_hz, edited.form, suffix, STDOUT))
            sys.stdout.buffer.flush()
        else:
            edited.write(path, args.force)
        name = STDOUT if path is None else str(path)
        tell(f"{name}: {short(prompt)}")
        tell(f"{name}: {edited.says(suffix)}")
        for seam in seam_metrics(edited.waveform_CS, edited.sample_rate_hz, edited.fades, edited.kept):
            if seam.audible:
                tell(f"warning: {name}: {warning_of(seam)}")
    return edits[0].seconds


def warning_of(seam: SeamMetrics) -> str:
    """A seam that stands out, in a sentence."""
    among = "95 of 100 places of the clip" if seam.own else "95 of 100 places of real music"
    found = [f"{what} by {value:.1f} dB ({among} stay below {limit:.1f})"
             for what, value, limit in (("the level jumps", seam.level_jump_db, seam.level_limit_db),
                                        ("the spectrum changes", seam.change_db, seam.change_limit_db))
             if value > limit]
    return (f"the seam at {seam.at_s:.2f} s stands out: {' and '.join(found)}; another --seed or prompt may fit better")
