"""What numbers a setting may have, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musiccm.errors import MusiccmError


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


#: Kinds of numbers: what is asked, and how the message says it.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (lambda v: _number(v) and v > 0, "a number above 0"),
    "not_negative": (lambda v: _number(v) and v >= 0, "a finite number from 0 on"),
    "share": (lambda v: _number(v) and 0 <= v <= 1, "a share in [0, 1]"),
    "decay": (lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "count": (lambda v: _whole(v) and v > 0, "a whole number above 0"),
    "index": (lambda v: _whole(v) and v >= 0, "a whole number from 0"),
    "finite": (_number, "a number"),
    "whole": (_whole, "a whole number"),
    "betas": (lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(_number(b) and 0 <= b < 1 for b in v),
              "two numbers from 0 to below 1"),
}


def check_ranges(
    where: str, settings: Mapping[str, Any], optional: Iterable[str] = (), **kinds: str
) -> None:
    """Refuse numbers out of range, NaN and infinity among them.

    Args:
        where: What the keys stand under, for the message: `distillation.`, or nothing.
        settings: Values by key.
        optional: Keys that may be null.
        **kinds: Keys, divided by spaces, of each kind in `KINDS`.

    Raises:
        MusiccmError: Names the key, what was expected and what was found.
    """
    for kind, keys in kinds.items():
        fits, expected = KINDS[kind]
        for key in keys.split():
            value = settings[key]
            if not fits(value) and not (value is None and key in optional):
                raise MusiccmError(f"{where}{key}: expected {expected}, found {value!r}.")
