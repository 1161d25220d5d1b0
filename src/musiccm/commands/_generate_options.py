"""Numbers that no piece can be made with, refused by the name of their option before a model is read."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Iterator, Mapping

from musiccm.errors import MusiccmError

MAX_GUIDANCE_SCALE = 100.0
"""Published scales are below 10; far above, float32 overflows."""

#: What the library calls an argument, and its option.
OPTIONS = {
    "steps": "--steps", "gamma": "--gamma", "schedule": "--schedule", "guidance_scale": "--guidance-scale",
    "duration": "--seconds", "sampler": "--sampler", "strength": "--strength", "overlap": "--overlap",
    "fusion": "--fusion", "range": "--from, --to", "prompts": "--at", "seed": "--seed",
}


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse what lies outside the range that an option has for every model.

    Args:
        args: The arguments of `generate`.

    Raises:
        MusiccmError: Names the option, what was expected and what was found.
    """
    ranges = {
        "steps": (1, math.inf, "a whole number from 1 on"),
        "seed": (0, math.inf, "a whole number from 0 on"),
        "guidance_scale": (0, MAX_GUIDANCE_SCALE, f"a number from 0 to {MAX_GUIDANCE_SCALE:g}"),
        "gamma": (0, 1, "a share of fresh noise from 0 to 1"),
        "strength": (math.ulp(0.0), 1, "a number above 0 and up to 1"),
        "overlap": (0, math.nextafter(1, 0), "a part of the window from 0 to below 1"),
    }
    for name, (low, high, expected) in ranges.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not low <= number <= high:  # a comparison with NaN is false
                raise MusiccmError(f"--{name.replace('_', '-')}: expected {expected}, found {number}")
    for option, value in (("--from", args.from_), ("--to", args.to)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise MusiccmError(f"{option}: expected seconds, from 0 on, found {value}")


@contextlib.contextmanager
def naming_options(options: Mapping[str, str] = OPTIONS) -> Iterator[None]:
    """Let errors of the library, which speaks of arguments, name the options that the arguments came from.

    Args:
        options: Of each argument, the command's option.

    Raises:
        MusiccmError: As raised within, under the option's name.
    """
    try:
        yield
    except MusiccmError as error:
        named = re.match(r"([a-z_]+): ", str(error))
        if type(error) is not MusiccmError or named is None or named[1] not in options:
            raise
        raise MusiccmError(f"{options[named[1]]}: {str(error)[named.end():]}") from error
