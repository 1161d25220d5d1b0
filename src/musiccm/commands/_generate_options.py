"""Options that no piece can be made with, refused by their name before torch is loaded."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from musiccm.bounds import (
    FUSIONS,
    MAX_GUIDANCE_SCALE,
    MAX_STREAM_S,
    MAX_WHOLE_S,
    check_duration,
    check_steps,
    check_text,
    check_texts,
    one_of,
)
from musiccm.commands._edits import edit_of
from musiccm.errors import MusiccmError
from musiccm.local_models import local_guidance_range, local_scheduler

#: What the library calls an argument, and its option.
OPTIONS = {
    "steps": "--steps", "gamma": "--gamma", "schedule": "--schedule", "guidance_scale": "--guidance-scale",
    "duration": "--seconds", "sampler": "--sampler", "strength": "--strength", "overlap": "--overlap",
    "fusion": "--fusion", "range": "--from, --to", "prompts": "--at", "seed": "--seed",
    "warm_up": "--warm-up",
}


def check_options(args: argparse.Namespace, changes: Sequence[tuple[float, str]]) -> None:
    """Refuse what no model takes, and steps that the one that is named has not.

    Args:
        args: The arguments of `generate`.
        changes: Texts from later on, of `--at`.

    Raises:
        MusiccmError: Names the option, what was expected and what was found.
    """
    _check_ranges(args)
    if args.prompts:
        check_texts(args.prompts)
    for start, text in changes:
        check_text(text, f"prompt at {start:g} s")
    if args.seconds is not None and args.stream:
        check_duration(args.seconds, MAX_STREAM_S, "without --seconds a stream goes on until it is interrupted")
    elif args.seconds is not None:
        check_duration(args.seconds, MAX_WHOLE_S, "--stream makes longer music")
    if args.fusion is not None:
        one_of("fusion", args.fusion, FUSIONS)
    if args.prompts_file is not None and not os.path.isfile(args.prompts_file):
        raise MusiccmError(f"--prompts {args.prompts_file}: missing: expected a file of prompts by id (.csv, .tsv or "
                           ".json); check the path")
    kind = edit_of(args)
    if kind is not None and not os.path.exists(clip := getattr(args, f"{kind}_")):
        raise MusiccmError(f"{clip}: missing: expected an audio file here; check the path")
    if args.steps is not None and (scheduler := local_scheduler(args.model)) is not None:
        check_steps(args.steps, scheduler)


def _check_ranges(args: argparse.Namespace) -> None:
    told = local_guidance_range(args.model)
    low, high = told or (0, MAX_GUIDANCE_SCALE)
    ranges = {
        "steps": (1, math.inf, "a whole number from 1 on"),
        "seed": (0, math.inf, "a whole number from 0 on"),
        "guidance_scale": (low, high, f"a number from {low:g} to {high:g}" + (
            ", the scales that this student was trained on" if told else "")),
        "gamma": (0, 1, "a share of fresh noise from 0 to 1"),
        "strength": (math.ulp(0.0), 1, "a number above 0 and up to 1"),
        "overlap": (0, math.nextafter(1, 0), "a part of the window from 0 to below 1"),
    }
    for name, (least, most, expected) in ranges.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not least <= number <= most:  # a comparison with NaN is false
                raise MusiccmError(f"--{name.replace('_', '-')}: expected {expected}, found {number}")
    for option, value in (("--from", args.from_), ("--to", args.to)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise MusiccmError(f"{option}: expected seconds, from 0 on, found {value}")
    if args.from_ is not None and args.from_ >= args.to:
        raise MusiccmError(f"--from, --to: expected a range that ends after its start, found from {args.from_:g} s to "
                           f"{args.to:g} s")
